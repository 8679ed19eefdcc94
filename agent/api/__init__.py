"""The gRPC services: one module each for the Workload API, the admin API, health and reflection.

`guard` checks every call of the public APIs, `status` is the table from errors to status codes, and
`servers` puts the services on their sockets. A further public API is one more module with a
`service` name and `handlers`, as `workload` has. Only `agent.service` imports this room.
"""
