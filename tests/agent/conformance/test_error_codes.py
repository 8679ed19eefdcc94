"""Status codes of failures that no client can cause."""

from __future__ import annotations

from agent.api.status import code_of, details_for_workload
from agent.errors import AttestationError, AuthorityError
from agent.transport.service import StatusCode


def test_EC_08_a_failure_of_attestation_or_authority_is_unavailable() -> None:
    for error in (AttestationError("an attestor failed"), AuthorityError("no key")):
        assert code_of(error) is StatusCode.UNAVAILABLE


def test_EC_13_an_internal_error_is_no_status_on_which_clients_give_up() -> None:
    for error in (ValueError("x"), KeyError("x"), RuntimeError("x"), TimeoutError(), OSError("x")):
        details = details_for_workload(error)
        assert code_of(error) in {StatusCode.UNAVAILABLE, StatusCode.INTERNAL}
        assert "x" not in details.split()
