"""The SPIFFE standards as pure functions: IDs, trust bundles, keys, lifetimes, rules of SVIDs.

Every room may import this one. It imports only `agent.errors`.
"""
