"""The daemon: builds all parts, starts and stops them, reloads them, and reports to systemd.

`wiring` is the composition root, `daemon` runs it, `endpoint` opens and closes a socket with its
server. Only `agent.cli` imports this room.
"""
