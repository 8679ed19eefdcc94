"""Attestors turn a process into selectors. `attestors.api` is all that a third party needs."""
