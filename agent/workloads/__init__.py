"""The connected workloads: their identities, open streams and refused calls.

`entitlement` attests a caller and matches it against the entries, `streams` lists the open streams
and wakes them, `entry_reload` replaces the entries, `refusals` keeps the last refused calls.
"""
