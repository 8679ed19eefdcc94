"""The authority of the trust domain: creates, rotates and stores its keys, and signs SVIDs.

`signer` has the Protocols, `Signer` to issue SVIDs and `ManagedAuthority` to administer. `embedded`
implements both with keys in `keystore`. `authority_set` and `rotation` are the pure state table of
the keys; `x509_issuer` and `jwt_issuer` check and sign. Only `agent.service` builds an authority.
Other rooms get it as a Protocol, and import the values that its methods take and return.
`agent.svids.disk_cache` keeps its files in `keystore` too.
"""
