"""The messages of the Workload API: what requests ask for, and the responses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from agent.api.methods import encode
from agent.errors import RequestError
from agent.pb import workloadapi_pb2 as pb
from agent.spiffe.ids import SpiffeId
from agent.telemetry.audit import IssuedJwt, IssuedX509

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from agent.authority.jwt_issuer import JwtSvid
    from agent.entries.identity import Identity
    from agent.svids.x509_svid import X509Svid
    from agent.telemetry.audit import Issued

# rust-spiffe reads no more than this many from a token.
MAX_AUDIENCES = 32
# A longer token would exceed what servers take in a header, and the limit of our own validator.
MAX_AUDIENCE_CHARS = 4096

SvidT = TypeVar("SvidT", pb.X509SVID, pb.JWTSVID)


@dataclass(frozen=True, slots=True)
class Response:
    """An encoded message, and the SVIDs in it, each with its identity.

    All streams that carry an equal response share its bytes.
    """

    framed: bytes
    issued: tuple[tuple[Identity, Issued], ...] = ()


def respond(message: Message, issued: tuple[tuple[Identity, Issued], ...] = ()) -> Response:
    """Encode a response of any size: the limit in force may change while it is kept."""
    return Response(encode(message, math.inf), issued)


def x509_response(svids: Sequence[tuple[Identity, X509Svid]], bundle: bytes) -> Response:
    """Make the response with all X.509-SVIDs of a caller, and their keys."""
    messages = [_x509_message(svid, bundle) for _, svid in svids]
    return respond(
        pb.X509SVIDResponse(svids=_with_unique_hints(messages)),
        tuple((identity, _issued_x509(identity, svid)) for identity, svid in svids),
    )


def jwt_response(svids: Sequence[tuple[Identity, JwtSvid]], audience: tuple[str, ...]) -> Response:
    """Make the response with the JWT-SVIDs that a caller asked for."""
    messages = [_jwt_message(identity, svid) for identity, svid in svids]
    return respond(
        pb.JWTSVIDResponse(svids=_with_unique_hints(messages)),
        tuple((identity, _issued_jwt(identity, svid, audience)) for identity, svid in svids),
    )


def _x509_message(svid: X509Svid, bundle: bytes) -> pb.X509SVID:
    return pb.X509SVID(
        spiffe_id=svid.spiffe_id,
        x509_svid=svid.chain_der,
        x509_svid_key=svid.key_der,
        bundle=bundle,
        hint=svid.hint,
    )


def _jwt_message(identity: Identity, svid: JwtSvid) -> pb.JWTSVID:
    return pb.JWTSVID(spiffe_id=str(identity.spiffe_id), svid=svid.token, hint=identity.hint)


def _issued_x509(identity: Identity, svid: X509Svid) -> IssuedX509:
    return IssuedX509(
        spiffe_id=svid.spiffe_id,
        entry_id=identity.entry_id,
        serial=f"{svid.serial:x}",
        expires_at=svid.not_after,
    )


def _issued_jwt(identity: Identity, svid: JwtSvid, audience: tuple[str, ...]) -> IssuedJwt:
    return IssuedJwt(
        spiffe_id=str(identity.spiffe_id),
        entry_id=identity.entry_id,
        kid=svid.kid,
        audience=audience,
        expires_at=svid.expires_at,
    )


def _with_unique_hints(svids: Sequence[SvidT]) -> Sequence[SvidT]:
    """Keep a hint for the first SVID that has it (Workload API section 5.2.1)."""
    seen: set[str] = set()
    for svid in svids:
        if svid.hint in seen:
            svid.hint = ""
        seen.add(svid.hint)
    return svids


def require_audience(requested: Sequence[str]) -> tuple[str, ...]:
    """Return the audience of a request, each name once.

    Raises:
        RequestError: there is no audience, or too much.
    """
    audience = tuple(dict.fromkeys(requested))
    if not audience or not all(name.strip() for name in audience):
        raise RequestError("audience must be specified, and none of it may be blank")
    if len(audience) > MAX_AUDIENCES or sum(map(len, audience)) > MAX_AUDIENCE_CHARS:
        raise RequestError(
            f"at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCE_CHARS} characters together fit"
        )
    return audience


def parse_requested_id(spiffe_id: str) -> SpiffeId | None:
    """Return the one SPIFFE ID that a request asks for; None if it asks for all.

    Raises:
        RequestError: this is not a SPIFFE ID.
    """
    if not spiffe_id:
        return None
    try:
        return SpiffeId.parse(spiffe_id)
    except ValueError as error:
        raise RequestError(f"invalid requested SPIFFE ID: {error}") from error
