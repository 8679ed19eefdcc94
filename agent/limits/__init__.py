"""Bounds on the use of the agent by one user or one cgroup.

`quotas` bounds connections, streams, attestations and calls at a time. `fair_queue` bounds requests
per second, and orders them. `lockout` closes the socket file to a user that floods it with hung-up
connections. This room imports `agent.kernel` and `agent.telemetry`.
"""
