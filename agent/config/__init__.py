"""Configuration files: the settings model, reading and watching, and the place of each mistake.

`settings` is the model of agent.yaml, with `values` and `addresses` as its parts. `yaml_document`
finds the line and column of a mistake. `files` reads from the disk, `watch` reports changes of
entry files. This room imports no other but `agent.kernel` and `agent.spiffe`.
"""
