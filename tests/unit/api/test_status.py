"""The table from errors to status codes and to the words of the metrics."""

from __future__ import annotations

import pytest

from agent.api.status import code_of, details_for_operator, details_for_workload, reason_of
from agent.authority.issuance import IssuanceError
from agent.authority.keystore import KeystoreError
from agent.errors import (
    AttestationError,
    AuthorityError,
    NoIdentityError,
    NotFoundError,
    PeerError,
    PeerGoneError,
    RequestError,
    ResponseSizeError,
    UnansweredError,
    UnavailableError,
    UnsupportedError,
)
from agent.signals import Refused
from agent.telemetry.plain import EXCERPT_CHARS
from agent.transport.service import StatusCode as Code
from agent.transport.service import StatusError


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (RequestError("audience must be specified"), Code.INVALID_ARGUMENT, "audience must be"),
        (UnsupportedError("not served"), Code.UNIMPLEMENTED, "not served"),
        (NotFoundError("no process 7"), Code.NOT_FOUND, "no process 7"),
        (PeerError("secret reason"), Code.PERMISSION_DENIED, "no identity issued"),
        (PeerGoneError("secret reason"), Code.PERMISSION_DENIED, "no identity issued"),
        (NoIdentityError("secret reason"), Code.PERMISSION_DENIED, "no identity issued"),
        (AttestationError("try again"), Code.UNAVAILABLE, "try again"),
        (AuthorityError("no key"), Code.UNAVAILABLE, "no key"),
        (ResponseSizeError("it has 5 bytes"), Code.RESOURCE_EXHAUSTED, "it has 5 bytes"),
        (StatusError(Code.INTERNAL, "half a message"), Code.INTERNAL, "half a message"),
        (KeystoreError("secret path"), Code.UNAVAILABLE, "internal error"),
        (ZeroDivisionError("secret"), Code.UNAVAILABLE, "internal error"),
    ],
)
def test_each_error_has_its_code_and_a_text_without_secrets(
    error: Exception, code: Code, details: str
) -> None:
    assert code_of(error) is code
    assert details_for_workload(error).startswith(details)
    assert "secret" not in details_for_workload(error)


@pytest.mark.parametrize("text", ["a" * 100_000, "\x1b[31m" * 100, "\u202e" * 400, "\n" * 300])
def test_text_of_a_caller_comes_back_short_and_printable(text: str) -> None:
    details = details_for_workload(RequestError(f"invalid requested SPIFFE ID: {text}"))
    assert details.startswith("invalid requested SPIFFE ID: ")
    assert len(details) == EXCERPT_CHARS
    assert details.isprintable()


def test_operators_learn_the_reason_of_each_error_but_a_defect() -> None:
    assert details_for_operator(PeerError("user 7 may not")) == "user 7 may not"
    assert details_for_operator(KeystoreError("/data is full")) == "/data is full"
    assert "secret" not in details_for_operator(ZeroDivisionError("secret"))


def test_each_error_has_a_word_in_the_metrics() -> None:
    words = {
        RequestError: Refused.REQUEST,
        UnsupportedError: Refused.UNSUPPORTED,
        PeerError: Refused.EVIDENCE,
        PeerGoneError: Refused.GONE,
        NoIdentityError: Refused.NO_ENTRY,
        AttestationError: Refused.ATTESTOR,
        UnansweredError: Refused.UNANSWERED,
        AuthorityError: Refused.AUTHORITY,
        IssuanceError: Refused.AUTHORITY,
        UnavailableError: Refused.UNAVAILABLE,
        ResponseSizeError: Refused.RESPONSE_SIZE,
        ZeroDivisionError: Refused.INTERNAL,
    }
    assert {kind: reason_of(kind("why")) for kind in words} == words


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (Code.RESOURCE_EXHAUSTED, Refused.SIZE),
        (Code.UNIMPLEMENTED, Refused.UNSUPPORTED),
        (Code.UNAVAILABLE, Refused.UNAVAILABLE),
        (Code.CANCELLED, Refused.GONE),
        (Code.DEADLINE_EXCEEDED, Refused.UNAVAILABLE),
        (Code.INVALID_ARGUMENT, Refused.REQUEST),
        (Code.INTERNAL, Refused.REQUEST),
    ],
)
def test_a_call_that_breaks_a_rule_of_grpc_has_a_word_in_the_metrics(
    code: Code, word: Refused
) -> None:
    assert reason_of(StatusError(code, "why")) == word
