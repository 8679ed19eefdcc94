"""What each connected workload is entitled to, and its open streams.

`entitlement` joins attestation and entries, `streams` lists open streams and wakes them,
`entry_reload` replaces the entries, `refusals` remembers the last refused calls.
"""
