"""The operations of an administrator on a running agent, without gRPC.

`operations` reads the state of the agent and changes its authorities, `reports` are the values that
it returns, `readiness` tells whether the agent can serve. Only `agent.api`, `agent.web` and
`agent.service` import this room.
"""
