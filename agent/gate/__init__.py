"""Accepts connections, identifies callers, and applies quotas before the first byte is read.

`listener` makes the socket, `socket_activation` takes it from the service manager. `acceptor`
accepts in batches. `admission` asks the kernel for the caller and checks the connection quota.
`gate` owns the open connections. `disconnects` logs why they ended. `agent.service`
connects a gate with its services, `agent.admin` counts its connections. `agent.web` and
`vouchd who` use `listener` alone.
"""
