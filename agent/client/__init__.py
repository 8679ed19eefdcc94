"""gRPC clients of a running agent.

`workload` speaks the Workload API, `admin` the admin API. The command line uses them; the daemon
does not.
"""
