"""Registration entries, and the selectors that match them.

`load` reads them, `schema` judges them, `index` finds those that match, `identity` turns a match
into a SPIFFE ID, `explain` says why an entry does not match. Pure but for `load`.
"""
