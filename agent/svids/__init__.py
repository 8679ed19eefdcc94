"""X.509-SVIDs and JWT-SVIDs: made once for each identity, cached, and renewed.

`x509` and `jwt` hold them in memory, `disk_cache` keeps X.509-SVIDs over a restart in the format of
`sealed_file`. This room signs through `agent.authority.signer`.
"""
