"""The SPIFFE standards as pure functions: IDs, bundles, keys, and the rules of SVIDs.

Every room may import this one; it imports none.
"""
