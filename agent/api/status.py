"""Status codes: one table from error class to gRPC status code and to the word in the metrics.

Clients of the Workload API attach a meaning to three codes (Workload Endpoint section 6): they give
up after INVALID_ARGUMENT and retry after PERMISSION_DENIED and UNAVAILABLE. An error without a row
is a defect of the agent; clients may retry it. The admin API uses the same table.

The transport chooses the code of a call that breaks a rule of gRPC (agent.transport.grpc_protocol),
is cancelled, or ends at its deadline (agent.transport.served_call): a StatusError, which keeps its
code here.
"""

from __future__ import annotations

from agent.errors import (
    AttestationError,
    AuthorityError,
    NoIdentityError,
    NotFoundError,
    PeerError,
    PeerGoneError,
    RequestError,
    ResponseSizeError,
    StartupError,
    UnansweredError,
    UnavailableError,
    UnsupportedError,
    VouchdError,
)
from agent.limits.quotas import OverLimitError
from agent.signals import Refused
from agent.telemetry.plain import excerpt
from agent.transport.service import StatusCode as Code
from agent.transport.service import StatusError

# rust-spiffe compares the details of PERMISSION_DENIED with exactly these words.
NO_IDENTITY = "no identity issued"
INTERNAL = "internal error; the agent's log says more"

_TABLE: dict[type[Exception], tuple[Code, Refused]] = {
    RequestError: (Code.INVALID_ARGUMENT, Refused.REQUEST),
    UnsupportedError: (Code.UNIMPLEMENTED, Refused.UNSUPPORTED),
    NotFoundError: (Code.NOT_FOUND, Refused.REQUEST),
    PeerError: (Code.PERMISSION_DENIED, Refused.EVIDENCE),
    PeerGoneError: (Code.PERMISSION_DENIED, Refused.GONE),
    NoIdentityError: (Code.PERMISSION_DENIED, Refused.NO_ENTRY),
    UnavailableError: (Code.UNAVAILABLE, Refused.UNAVAILABLE),
    AttestationError: (Code.UNAVAILABLE, Refused.ATTESTOR),
    UnansweredError: (Code.UNAVAILABLE, Refused.UNANSWERED),
    AuthorityError: (Code.UNAVAILABLE, Refused.AUTHORITY),
    StartupError: (Code.UNAVAILABLE, Refused.UNAVAILABLE),
    ResponseSizeError: (Code.RESOURCE_EXHAUSTED, Refused.RESPONSE_SIZE),
}
# The words of calls that break a rule of gRPC (agent.transport.grpc_protocol).
_WORDS = {
    Code.CANCELLED: Refused.GONE,
    Code.DEADLINE_EXCEEDED: Refused.UNAVAILABLE,
    Code.RESOURCE_EXHAUSTED: Refused.SIZE,
    Code.UNIMPLEMENTED: Refused.UNSUPPORTED,
    Code.UNAVAILABLE: Refused.UNAVAILABLE,
}
_DEFECT = Code.UNAVAILABLE, Refused.INTERNAL


def code_of(error: Exception) -> Code:
    """Return the status code of a failed call."""
    return error.code if isinstance(error, StatusError) else _row(error)[0]


def reason_of(error: Exception) -> str:
    """Return the word for a failed call in `vouchd_refusals_total`."""
    if isinstance(error, OverLimitError):
        return error.reason
    if isinstance(error, StatusError):
        return _WORDS.get(error.code, Refused.REQUEST)
    return _row(error)[1]


def details_for_workload(error: Exception) -> str:
    """Return the text that a workload gets. Why it has no identity is for the operator alone."""
    if code_of(error) is Code.PERMISSION_DENIED:
        return NO_IDENTITY
    return INTERNAL if isinstance(error, StartupError) else excerpt(details_for_operator(error))


def details_for_operator(error: Exception) -> str:
    """Return the text that an operator gets. The text of a defect is for the log alone."""
    return str(error) if isinstance(error, VouchdError) else INTERNAL


def _row(error: Exception) -> tuple[Code, Refused]:
    """Return the row of the most specific class."""
    return next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), _DEFECT)
