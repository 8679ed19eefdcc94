"""Operations on a running agent, and the reports they return.

`operations` answers the admin API and the probes; `reports` are the values it returns; `readiness`
says whether the agent can serve. Only `agent.api`, `agent.web` and `agent.service` import this
room.
"""
