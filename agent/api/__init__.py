"""The gRPC services: the Workload API, the admin API, health and reflection.

`guard` asks the kernel about the caller of every call and turns errors into status codes;
`workload` and `admin` hold the method handlers. Only `agent.service` imports this room.
"""
