"""Registration entries, and the selectors that match them.

`load` reads entry files, `schema` validates them. `entry` has the rule of a match, with expiry, and
`index` finds the entries that match a set of selectors. `identity` turns a match into a SPIFFE ID
(`template` fills in placeholders), `explain` says why an entry does not match, `spire_import`
converts SPIRE's entries. All but `load` do no I/O.
"""
