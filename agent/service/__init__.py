"""The daemon: builds the parts, starts, reloads and stops them, and reports to systemd.

`wiring` is the composition root and `policies` its view of the settings; `daemon` runs the parts,
`background` their endless tasks, `endpoint` a socket with its server; `reload` follows SIGHUP and
the entry files; `process` sets the limits of the process, `sd_notify` talks to the service manager.
Only `agent.cli` imports this room.
"""
