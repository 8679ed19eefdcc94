"""Log, audit trail and metrics.

`log` writes events from a thread of its own, `audit` has one event for each SVID and refusal,
`metrics` has the Prometheus metrics. This room knows no entries and no callers' calls.
"""
