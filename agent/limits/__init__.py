"""Bounds on the use of the agent by one user or one cgroup.

`quotas` bounds connections, streams, attestations, calls and held bytes at a time. `fair_queue`
bounds requests per second, and shares the time of the event loop. `lockout` closes the socket file
to a user that floods it with hung-up connections. This room imports `agent.kernel` and
`agent.telemetry`.
"""
