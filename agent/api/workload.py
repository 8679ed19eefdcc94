"""The SPIFFE Workload API: from an entitled caller to its SVIDs and bundles.

Every message carries the whole state (Workload API section 4.3). Before each message of a stream
the caller is attested and matched again, and also from time to time in between: a stream ends with
PERMISSION_DENIED when there is nothing left to have. The WIT profile is incubating in the standard
and answers UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf import json_format

from agent.api.context import UnsupportedError
from agent.entitlement import Entitlement
from agent.errors import AuthorityError, NoIdentityError, RequestError, UnavailableError
from agent.issuance import JwtSvidRequest
from agent.pb import workloadapi_pb2 as pb
from agent.spiffe import SpiffeId
from agent.validation import validate_jwt_svid

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta

    from google.protobuf.message import Message
    from structlog.typing import FilteringBoundLogger

    from agent.api.context import Guard
    from agent.bundle import TrustBundle
    from agent.clock import Clock
    from agent.entitlement import Entitlements
    from agent.entries import Entry
    from agent.issuance import JwtSvid
    from agent.peer import Caller
    from agent.spiffe import TrustDomain
    from agent.svids import Svids, X509Svid

SERVICE = pb.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"].full_name

# rust-spiffe reads no more than this many from a token.
MAX_AUDIENCES = 32
# A token with more would be over what servers take in a header, and over our own validator's limit.
MAX_AUDIENCE_CHARS = 4096
# While an attestor fails, its caller's stream asks again this often for what may be missing.
RETRY_SECONDS = 10.0

SvidT = TypeVar("SvidT", pb.X509SVID, pb.JWTSVID)
Pushes: TypeAlias = "AsyncGenerator[Message, None]"


class Entitle(Protocol):
    """How a method finds out what its caller may have; see Entitlements.of."""

    def __call__(self, caller: Caller, *, releasing: bool = ...) -> Awaitable[Entitlement]:
        """See Entitlements.of."""
        ...


@dataclass(frozen=True, slots=True)
class Review:
    """How often the caller of an open stream is attested again, though nothing has changed.

    `spread` draws from [-1, 1), so that streams that began together do not stay together.
    """

    interval: timedelta
    spread: Callable[[], float]

    def seconds(self, *, complete: bool) -> float:
        """Until the next time: never more than the interval, sooner while an attestor fails."""
        interval = self.interval.total_seconds()
        if not complete:
            interval = min(interval, RETRY_SECONDS)
        return interval * (0.9 + 0.1 * self.spread())


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPolicy:
    """What the operator decides about serving."""

    default_jwt_ttl: timedelta
    review: Review
    allow_unauthenticated_verifiers: bool = False


class Authority(Protocol):
    """What is needed of the authority."""

    @property
    def bundle(self) -> TrustBundle:
        """The trust bundle of the agent's own trust domain."""
        ...

    def sign_jwt(self, request: JwtSvidRequest) -> JwtSvid:
        """Sign.

        Raises:
            AuthorityError: it cannot, or refuses.
        """
        ...


class WorkloadApi:
    """The methods, as coroutines over a caller and a request; `handlers` dresses them for gRPC."""

    def __init__(
        self,
        *,
        entitlements: Entitlements,
        svids: Svids,
        authority: Authority,
        clock: Clock,
        policy: ServingPolicy,
        log: FilteringBoundLogger,
    ) -> None:
        self._entitlements = entitlements
        self._svids = svids
        self._authority = authority
        self._clock = clock
        self._policy = policy
        self._log = log

    def handlers(self, guard: Guard) -> grpc.GenericRpcHandler:
        """All seven methods of the standard, none more (Workload API section 2)."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchX509SVID": guard.stream(pb.X509SVIDRequest, self.fetch_x509_svid),
                "FetchX509Bundles": guard.stream(pb.X509BundlesRequest, self.fetch_x509_bundles),
                "FetchJWTSVID": guard.unary(pb.JWTSVIDRequest, self.fetch_jwt_svid),
                "FetchJWTBundles": guard.stream(pb.JWTBundlesRequest, self.fetch_jwt_bundles),
                "ValidateJWTSVID": guard.unary(pb.ValidateJWTSVIDRequest, self.validate_jwt_svid),
                "FetchWITSVID": guard.stream(pb.WITSVIDRequest, self.fetch_wit),
                "FetchWITBundles": guard.stream(pb.WITBundlesRequest, self.fetch_wit),
            },
        )

    def fetch_x509_svid(self, caller: Caller, _request: pb.X509SVIDRequest) -> Pushes:
        """The caller's X.509-SVIDs with their keys, and again at every renewal."""
        return self._push(caller, self._entitlements.of, self._x509_response)

    def fetch_x509_bundles(self, caller: Caller, _request: pb.X509BundlesRequest) -> Pushes:
        """The X.509 authorities that the caller may trust, and again at every change."""
        return self._push(caller, self._verifier, self._x509_bundles_response)

    def fetch_jwt_bundles(self, caller: Caller, _request: pb.JWTBundlesRequest) -> Pushes:
        """The JWT authorities that the caller may trust, and again at every change."""
        return self._push(caller, self._verifier, self._jwt_bundles_response)

    async def fetch_jwt_svid(
        self, caller: Caller, request: pb.JWTSVIDRequest
    ) -> pb.JWTSVIDResponse:
        """A JWT-SVID for every identity of the caller, or for the one that it asks for."""
        audience = _require_audience(request.audience)
        wanted = _parse_wanted(request.spiffe_id)
        entitlement = await self._entitlements.of(caller)
        entries = [e for e in entitlement.entries if wanted is None or e.spiffe_id == wanted]
        if not entries:
            raise NoIdentityError(f"the caller asked for {wanted}, which is none of its identities")
        svids = self._each(entries, lambda entry: self._jwt_message(entry, audience))
        self._log_served("jwt-svid", caller, entries)
        return pb.JWTSVIDResponse(svids=_with_unique_hints(svids))

    async def validate_jwt_svid(
        self, caller: Caller, request: pb.ValidateJWTSVIDRequest
    ) -> pb.ValidateJWTSVIDResponse:
        """Whether a token is valid for an audience, and what it claims."""
        if not request.audience:
            raise RequestError("audience must be specified")
        if not request.svid:
            raise RequestError("svid must be specified")
        await self._verifier(caller, releasing=False)
        valid = validate_jwt_svid(
            request.svid, request.audience, self._bundles(), self._clock.now()
        )
        response = pb.ValidateJWTSVIDResponse(spiffe_id=str(valid.spiffe_id))
        # A list whatever the token has, so that callers need to expect one form only.
        json_format.ParseDict({**valid.claims, "aud": [*valid.audience]}, response.claims)
        return response

    def fetch_wit(self, _caller: Caller, _request: Message) -> Pushes:
        """Not served (Workload API section 7)."""
        raise UnsupportedError("the WIT-SVID profile is not served")

    async def _push(
        self,
        caller: Caller,
        entitle: Entitle,
        compose: Callable[[Caller, Sequence[Entry]], Message],
    ) -> Pushes:
        """A response at once, and after every change, for as long as the caller is entitled."""
        while True:
            entitlement = await entitle(caller)
            with self._svids.watch(entitlement.entries) as changed:
                yield compose(caller, entitlement.entries)
                while not changed.is_set() and not await self._is_due(
                    caller, entitlement, entitle, changed
                ):
                    pass

    async def _is_due(
        self, caller: Caller, served: Entitlement, entitle: Entitle, changed: asyncio.Event
    ) -> bool:
        """Wait for a change or for the next look at the caller: whether it is to get a message.

        Raises:
            PeerError, NoIdentityError: it may have nothing any more.
        """
        await _wait(changed, self._policy.review.seconds(complete=served.complete))
        if changed.is_set():
            return True
        try:
            now = await entitle(caller, releasing=False)
        except UnavailableError:
            return False  # nobody knows; what it has it keeps, and gets nothing new
        lost_for_now = not now.complete and set(now.entries) < set(served.entries)
        return now.entries != served.entries and not lost_for_now

    async def _verifier(self, caller: Caller, *, releasing: bool = True) -> Entitlement:
        """Who has an identity may see bundles; others only if the operator allows it (Q-13)."""
        try:
            return await self._entitlements.of(caller, releasing=releasing)
        except NoIdentityError:
            if self._policy.allow_unauthenticated_verifiers:
                return Entitlement(entries=(), complete=True)
            raise

    # --- messages -------------------------------------------------------------------------------

    def _bundles(self) -> Mapping[TrustDomain, TrustBundle]:
        bundle = self._authority.bundle
        return {bundle.trust_domain: bundle}

    def _x509_response(self, caller: Caller, entries: Sequence[Entry]) -> pb.X509SVIDResponse:
        bundle = self._authority.bundle.x509_der()
        svids = self._each(entries, lambda entry: _x509_message(self._svids.get(entry), bundle))
        self._log_served("x509-svid", caller, entries)
        return pb.X509SVIDResponse(svids=_with_unique_hints(svids))

    def _x509_bundles_response(
        self, _caller: Caller, _entries: Sequence[Entry]
    ) -> pb.X509BundlesResponse:
        return pb.X509BundlesResponse(
            bundles={td.id: bundle.x509_der() for td, bundle in self._bundles().items()}
        )

    def _jwt_bundles_response(
        self, _caller: Caller, _entries: Sequence[Entry]
    ) -> pb.JWTBundlesResponse:
        return pb.JWTBundlesResponse(
            bundles={td.id: bundle.jwks() for td, bundle in self._bundles().items()}
        )

    def _jwt_message(self, entry: Entry, audience: tuple[str, ...]) -> pb.JWTSVID:
        svid = self._authority.sign_jwt(
            JwtSvidRequest(
                spiffe_id=entry.spiffe_id,
                audience=audience,
                ttl=entry.jwt_svid_ttl or self._policy.default_jwt_ttl,
                not_after_limit=entry.expires_at,
            )
        )
        return pb.JWTSVID(spiffe_id=str(entry.spiffe_id), svid=svid.token, hint=entry.hint)

    def _each(self, entries: Sequence[Entry], make: Callable[[Entry], SvidT]) -> list[SvidT]:
        """One message an entry. An entry that cannot be served now does not hold up the others.

        Raises:
            AuthorityError: none can be served.
        """
        made: list[SvidT] = []
        failure: AuthorityError | None = None
        for entry in entries:
            try:
                made.append(make(entry))
            except AuthorityError as error:
                failure = error
                self._log.warning("svid not made", entry=entry.id, reason=str(error))
        if failure is not None and not made:
            raise failure
        return made

    def _log_served(self, kind: str, caller: Caller, entries: Sequence[Entry]) -> None:
        self._log.info(
            "served",
            kind=kind,
            pid=caller.credentials.pid,
            uid=caller.credentials.uid,
            entries=[entry.id for entry in entries],
            spiffe_ids=[str(entry.spiffe_id) for entry in entries],
        )


async def _wait(changed: asyncio.Event, seconds: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await changed.wait()


def _x509_message(svid: X509Svid, bundle: bytes) -> pb.X509SVID:
    return pb.X509SVID(
        spiffe_id=svid.spiffe_id,
        x509_svid=svid.chain_der,
        x509_svid_key=svid.key_der,
        bundle=bundle,
        hint=svid.hint,
    )


def _with_unique_hints(svids: Sequence[SvidT]) -> Sequence[SvidT]:
    """Of several SVIDs with one hint the first keeps it (Workload API section 5.2.1)."""
    seen: set[str] = set()
    for svid in svids:
        if svid.hint in seen:
            svid.hint = ""
        seen.add(svid.hint)
    return svids


def _require_audience(requested: Sequence[str]) -> tuple[str, ...]:
    audience = tuple(dict.fromkeys(requested))
    if not audience or not all(name.strip() for name in audience):
        raise RequestError("audience must be specified, and none of it may be blank")
    if len(audience) > MAX_AUDIENCES or sum(map(len, audience)) > MAX_AUDIENCE_CHARS:
        raise RequestError(
            f"at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCE_CHARS} characters together fit"
        )
    return audience


def _parse_wanted(spiffe_id: str) -> SpiffeId | None:
    if not spiffe_id:
        return None
    try:
        return SpiffeId.parse(spiffe_id)
    except ValueError as error:
        raise RequestError(f"invalid requested SPIFFE ID: {error}") from error
