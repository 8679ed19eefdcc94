"""Configuration files: reading, watching, and the settings in them.

`settings` is the model of agent.yaml, `yaml_document` finds the line and column of a mistake,
`files` reads from the disk and `watch` reports changes of entry files. This room imports no
other but `agent.kernel` and `agent.spiffe`.
"""
