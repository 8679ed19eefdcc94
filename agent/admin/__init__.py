"""The operations of an administrator on a running agent, without gRPC.

`operations` reads the state of the agent and changes its authorities, `reports` are the values that
it returns, `readiness` tells whether the agent can serve, `gauges` reads the state for the metrics.
Only `agent.api` and `agent.service` import this room.
"""
