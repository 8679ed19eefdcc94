"""X.509-SVIDs and JWT-SVIDs: issued once for each identity, cached, and renewed.

`x509` and `jwt` hold them in memory, `schedule` holds their renewal times, and `disk_cache` keeps
X.509-SVIDs over a restart in the format of `sealed_file`. This room signs through
`agent.authority.signer`.
"""
