"""Attestors turn a process into selectors. A third-party attestor imports `attestors.api` alone."""
