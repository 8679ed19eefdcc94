"""Generated from tests/conformance/proto by `make proto`; never edited by hand."""
