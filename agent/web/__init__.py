"""HTTP endpoints for monitoring: `/metrics`, `/live` and `/ready`.

They exist if `telemetry.listen` is set. Only `agent.service` imports this room.
"""
