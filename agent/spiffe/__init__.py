"""The SPIFFE standards as pure functions: IDs, trust bundles, keys, lifetimes, rules of SVIDs.

It imports only `agent.errors`. Rooms that handle names and SVIDs import it; those of the host side
(kernel, limits, transport, gate, attestation) do not, and know no SPIFFE ID.
"""
