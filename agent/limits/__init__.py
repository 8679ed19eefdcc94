"""Bounds on what one user or one cgroup may use.

`quotas` count, `fair_queue` orders requests, `lockout` closes the socket to a user. This room
imports `agent.kernel` and `agent.telemetry`.
"""
