"""HTTP for monitoring: `/metrics`, `/live` and `/ready`.

Off unless `telemetry.listen` is set. Only `agent.service` imports this room.
"""
