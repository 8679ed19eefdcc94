"""From a caller to its selectors.

`attestor` runs an attestation, checks the evidence before and after it, and remembers its
result; `panel` runs the plug-ins; `plugins` finds them. This room knows no entries and no SVIDs.
"""
