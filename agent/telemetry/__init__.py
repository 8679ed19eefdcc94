"""Log, audit trail and metrics.

`log` writes events from a thread of its own, `audit` has one event for each SVID and refusal,
`metrics` counts and `exposition` makes Prometheus text of the numbers. `throttled_log` limits lines
that a caller can cause at will, `journal` writes to systemd's journal, `plain` turns values into
plain data. This room knows no entries and no gRPC.
"""
