"""The authority of the trust domain: creates, rotates and stores its keys, and signs SVIDs.

`signer` is the Protocol that the rest of the agent uses. `embedded` implements it with keys in
`keystore`. `authority_set` and `rotation` are the pure state table of the keys; `x509_issuer` and
`jwt_issuer` check and sign. `agent.service` builds an authority; other rooms see `signer` alone.
"""
