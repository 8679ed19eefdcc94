"""gRPC clients of a running agent, for the command line.

`workload` calls the Workload API, `admin` the admin API. `endpoint` converts paths of sockets to
URIs and gRPC targets; the agent uses it too.
"""
