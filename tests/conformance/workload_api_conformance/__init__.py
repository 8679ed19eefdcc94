"""Conformance tests for servers of the SPIFFE Workload API. README.md says how to run them."""
