"""The certificate and token authority.

`signer` is the Protocol that the rest of the agent uses; `embedded` implements it with keys in
`keystore`. `authority_set` and `rotation` are the pure state table of its keys; `x509_issuer` and
`jwt_issuer` check and sign. `agent.service` builds an authority; all others see `signer` alone.
"""
