"""Values and helpers that several test modules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import wire
from .pb import workload_pb2 as pb

if TYPE_CHECKING:
    from .wire import CallError, Endpoint

AUDIENCE = ["spiffe://conformance.example/service", "second audience"]
FOREIGN_ID = "spiffe://{}/conformance/no/caller/has/this"
"""An ID of the given trust domain that is no identity of this process."""


@dataclass(frozen=True, slots=True)
class Validator:
    """Calls ValidateJWTSVID of an endpoint."""

    endpoint: Endpoint

    def __call__(self, token: str, audience: str = AUDIENCE[0]) -> pb.ValidateJWTSVIDResponse:
        """Return the response for a token.

        Raises:
            CallError: the endpoint refuses the token.
        """
        request = pb.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return self.endpoint.ask(wire.VALIDATE, pb.ValidateJWTSVIDResponse, request)

    def status(self, token: str, audience: str = AUDIENCE[0]) -> int:
        """Return the status of the call for a token."""
        request = pb.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return self.endpoint.status(wire.VALIDATE, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The messages of two FetchX509SVID streams.

    The server renews the first of `renewing_ids` between any two messages of `renewals`. It takes
    away the identities `losing_ids` one after the other; `losses` is the whole of that stream.
    """

    renewals: list[pb.X509SVIDResponse]
    renewing_ids: list[str]
    losses: list[pb.X509SVIDResponse]
    losing_ids: list[str]
    end: CallError
