"""Attestation: from a connected caller to its selectors.

`attestor` compares the process before and after each attestation, `runner` calls the attestors,
`memory` keeps their findings while the process does not change, `result` is what they found,
`plugins` loads and constructs them. This room imports no entries, no authority and no SVIDs.
"""
