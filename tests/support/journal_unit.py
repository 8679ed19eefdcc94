"""Log one event of each kind through the agent's log; runs in a machine with systemd."""

from __future__ import annotations

from agent.telemetry.audit import AuditEvent
from agent.telemetry.log import configure_log


def main() -> None:
    """One event of each kind."""
    log, writer = configure_log("info", "text")
    log.warning("two lines", text="one\ntwo", names=["a", "b"])
    fields = {"spiffe_id": "spiffe://example.org/payments", "pid": 4711}
    writer.audit(AuditEvent("svid issued", fields))
    log.info("large", text="x" * 1_000_000)
    log.debug("below the level")
    writer.close()


if __name__ == "__main__":
    main()
