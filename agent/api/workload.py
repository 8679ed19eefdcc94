"""The SPIFFE Workload API: X.509-SVIDs, JWT-SVIDs and bundles for the identities of a caller.

Each message carries the whole state (Workload API section 4.3). Before each message of a stream the
caller is attested and matched again, and in between at `reattest_interval`; without any identity
the stream ends with PERMISSION_DENIED. The WIT profile is incubating in the standard: its methods
answer UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from agent.api.workload_messages import (
    jwt_response,
    parse_requested_id,
    require_audience,
    respond,
    x509_response,
)
from agent.authority.authority_set import AuthorityKind
from agent.errors import (
    AuthorityError,
    NoIdentityError,
    RequestError,
    UnavailableError,
    UnsupportedError,
)
from agent.pb import workloadapi_pb2 as pb
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.telemetry.throttled_log import ThrottledLog
from agent.transport.grpc_protocol import RESPONSE_BYTES, check_response_size
from agent.workloads.entitlement import Entitlement

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta

    from google.protobuf.message import Message
    from structlog.typing import FilteringBoundLogger

    from agent.api.guard import Guard
    from agent.api.workload_messages import Response
    from agent.attestation.result import Attested
    from agent.authority.signer import Signer
    from agent.clock import Clock
    from agent.entries.identity import Identity
    from agent.kernel.caller import Caller
    from agent.spiffe.bundle import TrustBundle
    from agent.spiffe.ids import TrustDomain
    from agent.svids.jwt import JwtSvids
    from agent.svids.x509 import X509Svids
    from agent.svids.x509_svid import X509Svid
    from agent.telemetry.audit import Issued
    from agent.transport.service import Method
    from agent.workloads.entitlement import Entitlements
    from agent.workloads.streams import OpenStream, Streams

# While an attestor fails, identities may be missing: the stream attests its caller this often.
RETRY_SECONDS = 10.0
# Streams whose next attestations fall within such a time do them together.
TOGETHER_SECONDS = 1.0

SvidT = TypeVar("SvidT")
Responses: TypeAlias = "AsyncGenerator[Response, None]"


class Entitle(Protocol):
    """How a method finds the identities of its caller; see Entitlements.of."""

    def __call__(self, caller: Caller, *, releasing: bool = ...) -> Awaitable[Entitlement]:
        """See Entitlements.of."""
        ...


@dataclass(frozen=True, slots=True)
class _Stream:
    """A streaming method: the kind of authorities in its messages, and whether SVIDs are too."""

    name: str
    kind: AuthorityKind
    has_svids: bool = False


_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
METHODS = tuple(_DESCRIPTOR.methods_by_name)
"""The names of all methods."""

_FETCH_X509_SVID = _Stream("FetchX509SVID", AuthorityKind.X509, has_svids=True)
_FETCH_X509_BUNDLES = _Stream("FetchX509Bundles", AuthorityKind.X509)
_FETCH_JWT_BUNDLES = _Stream("FetchJWTBundles", AuthorityKind.JWT)
_FETCH_JWT_SVID = "FetchJWTSVID"

STREAMING = tuple(each.name for each in (_FETCH_X509_SVID, _FETCH_X509_BUNDLES, _FETCH_JWT_BUNDLES))
"""The names of the methods whose streams stay open."""


@dataclass(frozen=True, slots=True)
class _CachedResponse:
    """The response for all callers with the same SVIDs, until the bundle changes."""

    bundle: TrustBundle
    serials: tuple[int, ...]
    response: Response


@dataclass(frozen=True, slots=True)
class _CachedBundles:
    """The responses for all callers that read bundles, until the bundle changes."""

    bundle: TrustBundle
    x509: Response
    jwt: Response


@dataclass(frozen=True, slots=True)
class Review:
    """How often the caller of an open stream is attested again without any change.

    `spread` draws from [-1, 1): streams that began together do not stay together. While an attestor
    fails, the interval is at most `retry_seconds`.
    """

    interval: timedelta
    spread: Callable[[], float]
    retry_seconds: float = RETRY_SECONDS

    def seconds(self, *, complete: bool) -> float:
        """Return the seconds until the next attestation: at most the interval."""
        interval = self.interval.total_seconds()
        if not complete:
            interval = min(interval, self.retry_seconds)
        return interval * (0.95 + 0.05 * self.spread())


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPolicy:
    """The settings of the operator for this API."""

    review: Review
    allow_unauthenticated_verifiers: bool = False
    response_bytes: int = RESPONSE_BYTES
    """The most bytes of a response."""


class WorkloadApi:
    """The methods, as coroutines over a caller and a request.

    `policy` may be replaced at any time. `note_issued` gets each SVID before its response is sent,
    with the attestation of its caller.
    """

    service = _DESCRIPTOR.full_name

    def __init__(
        self,
        *,
        entitlements: Entitlements,
        authority: Signer,
        x509_svids: X509Svids,
        jwt_svids: JwtSvids,
        streams: Streams,
        clock: Clock,
        policy: ServingPolicy,
        note_issued: Callable[[Caller, Issued, Attested | None], None],
        log: FilteringBoundLogger,
    ) -> None:
        self.policy = policy
        self._note_issued = note_issued
        self._entitlements = entitlements
        self._x509_svids = x509_svids
        self._jwt_svids = jwt_svids
        self._authority = authority
        self._streams = streams
        self._clock = clock
        self._throttled = ThrottledLog(log)
        # By the first SVID of the response: a response holds keys, and is dropped with them.
        self._x509_responses: WeakKeyDictionary[X509Svid, _CachedResponse] = WeakKeyDictionary()
        self._bundle_responses: _CachedBundles | None = None

    def methods(self, guard: Guard) -> Mapping[bytes, Method]:
        """Return the seven methods of the standard (section 2), behind the guard."""
        return guard.methods(
            _DESCRIPTOR,
            unary={
                _FETCH_JWT_SVID: self.fetch_jwt_svid,
                "ValidateJWTSVID": self.validate_jwt_svid,
            },
            streaming={
                _FETCH_X509_SVID.name: self.fetch_x509_svid,
                _FETCH_X509_BUNDLES.name: self.fetch_x509_bundles,
                _FETCH_JWT_BUNDLES.name: self.fetch_jwt_bundles,
                "FetchWITSVID": self.fetch_wit,
                "FetchWITBundles": self.fetch_wit,
            },
        )

    def fetch_x509_svid(self, caller: Caller, _request: pb.X509SVIDRequest) -> Responses:
        """Send the caller's X.509-SVIDs with their keys, now and at each renewal."""
        return self._push(_FETCH_X509_SVID, caller, self._entitlements.of, self._x509_response)

    def fetch_x509_bundles(self, caller: Caller, _request: pb.X509BundlesRequest) -> Responses:
        """Send the X.509 authorities that the caller may trust, now and at each change."""
        return self._push(_FETCH_X509_BUNDLES, caller, self._verifier, self._x509_bundles_response)

    def fetch_jwt_bundles(self, caller: Caller, _request: pb.JWTBundlesRequest) -> Responses:
        """Send the JWT authorities that the caller may trust, now and at each change."""
        return self._push(_FETCH_JWT_BUNDLES, caller, self._verifier, self._jwt_bundles_response)

    async def fetch_jwt_svid(self, caller: Caller, request: pb.JWTSVIDRequest) -> Response:
        """Return a JWT-SVID for each identity of the caller, or for the one in the request."""
        audience = require_audience(request.audience)
        requested = parse_requested_id(request.spiffe_id)
        await self._authority.ensure_can_sign()
        entitlement = await self._entitlements.of(caller)
        identities = [i for i in entitlement.identities if requested in {None, i.spiffe_id}]
        if not identities:
            raise NoIdentityError(f"the caller asked for {requested}, which is not its identity")
        response = self._jwt_response(identities, audience)
        self._note_served(_FETCH_JWT_SVID, caller, entitlement, response)
        return response

    async def validate_jwt_svid(
        self, caller: Caller, request: pb.ValidateJWTSVIDRequest
    ) -> Response:
        """Validate a token for an audience, and return its claims."""
        if not request.audience:
            raise RequestError("audience must be specified")
        if not request.svid:
            raise RequestError("svid must be specified")
        await self._verifier(caller, releasing=False)
        valid = validate_jwt_svid(
            request.svid, request.audience, self._bundles(), self._clock.now()
        )
        response = pb.ValidateJWTSVIDResponse(spiffe_id=str(valid.spiffe_id))
        # A list even if the token has a string: clients need one form only.
        response.claims.update({**valid.claims, "aud": [*valid.audience]})
        answer = respond(response)
        self._check_size(answer)
        return answer

    def fetch_wit(self, _caller: Caller, _request: Message) -> Responses:
        """Refuse: WIT-SVIDs are not served (Workload API section 7).

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("the WIT-SVID profile is not served")

    async def _push(
        self,
        method: _Stream,
        caller: Caller,
        entitle: Entitle,
        compose: Callable[[Sequence[Identity]], Response],
    ) -> Responses:
        """Yield a response now and after each change, except one equal to the last."""
        sent = b""
        with self._streams.open_stream(caller, method.name, method.kind) as stream:
            while True:
                # A change from here on ends the next wait.
                stream.changed.clear()
                self._streams.check_open()
                await self._authority.ensure_can_sign()
                entitlement = await entitle(caller)
                self._streams.show(stream, entitlement)
                watched = entitlement.identities if method.has_svids else ()
                with self._x509_svids.watch(watched, stream.changed):
                    response = compose(entitlement.identities)
                    if response.framed != sent:
                        self._note_served(method.name, caller, entitlement, response)
                        sent = response.framed
                        yield response
                    while not await self._is_due(stream, entitle):
                        pass

    async def _is_due(self, stream: OpenStream, entitle: Entitle) -> bool:
        """Wait for a change or the next review; return whether a message may be due.

        Raises:
            PeerError, NoIdentityError: the caller has no identity any more.
        """
        shown = stream.entitlement
        if shown is None:
            return True
        moment = _moment(self.policy.review.seconds(complete=shown.complete))
        if await stream.changed.wait_until(moment):
            return True
        try:
            now = await entitle(stream.caller, releasing=False)
        except UnavailableError:
            return False  # unknown: the caller keeps its SVIDs, and gets nothing new
        if now.identities == shown.identities:
            self._streams.show(stream, now)
            return False
        # An identity that is missing while an attestor fails may be there still.
        return now.complete or not set(now.identities) < set(shown.identities)

    async def _verifier(self, caller: Caller, *, releasing: bool = True) -> Entitlement:
        """Return the entitlement of a caller that reads bundles.

        Without an identity it may read them only if the operator allows it.
        """
        try:
            return await self._entitlements.of(caller, releasing=releasing)
        except NoIdentityError:
            if self.policy.allow_unauthenticated_verifiers:
                return Entitlement(identities=())
            raise

    # --- messages -------------------------------------------------------------------------------

    def _bundles(self) -> Mapping[TrustDomain, TrustBundle]:
        bundle = self._authority.bundle
        return {bundle.trust_domain: bundle}

    def _x509_response(self, identities: Sequence[Identity]) -> Response:
        bundle = self._authority.bundle
        svids = self._svid_of_each(identities, self._x509_svids.get)
        serials, first = tuple(svid.serial for _, svid in svids), svids[0][1]
        cached = self._x509_responses.get(first)
        if cached is None or cached.bundle is not bundle or cached.serials != serials:
            cached = _CachedResponse(bundle, serials, x509_response(svids, bundle.x509_der()))
            self._x509_responses[first] = cached
        return cached.response

    def _jwt_response(self, identities: Sequence[Identity], audience: tuple[str, ...]) -> Response:
        svids = self._svid_of_each(identities, lambda each: self._jwt_svids.get(each, audience))
        return jwt_response(svids, audience)

    def _x509_bundles_response(self, _identities: Sequence[Identity]) -> Response:
        return self._responses_with_bundles().x509

    def _jwt_bundles_response(self, _identities: Sequence[Identity]) -> Response:
        return self._responses_with_bundles().jwt

    def _responses_with_bundles(self) -> _CachedBundles:
        bundle, cached = self._authority.bundle, self._bundle_responses
        if cached is None or cached.bundle is not bundle:
            bundles = self._bundles().items()
            x509 = pb.X509BundlesResponse(bundles={td.id: each.x509_der() for td, each in bundles})
            jwt = pb.JWTBundlesResponse(bundles={td.id: each.jwks() for td, each in bundles})
            cached = _CachedBundles(bundle, respond(x509), respond(jwt))
            self._bundle_responses = cached
        return cached

    def _svid_of_each(
        self, identities: Sequence[Identity], get: Callable[[Identity], SvidT]
    ) -> list[tuple[Identity, SvidT]]:
        """Return an SVID for each identity, without those that cannot be issued now.

        Raises:
            AuthorityError: none can be issued.
        """
        svids: list[tuple[Identity, SvidT]] = []
        failure: AuthorityError | None = None
        for identity in identities:
            try:
                svids.append((identity, get(identity)))
            except AuthorityError as error:
                failure = error
                entry_id = identity.entry_id
                self._throttled.warning(
                    "svid not issued", entry_id, entry_id=entry_id, reason=str(error)
                )
        if failure is not None and not svids:
            raise failure
        return svids

    def _check_size(self, response: Response) -> None:
        check_response_size(response.framed, self.policy.response_bytes)

    def _note_served(
        self, method: str, caller: Caller, entitlement: Entitlement, response: Response
    ) -> None:
        """Note that a response is about to be sent.

        Raises:
            ResponseSizeError: clients would not take it.
        """
        self._check_size(response)
        for _, svid in response.issued:
            self._note_issued(caller, svid, entitlement.attestation)
        if response.issued:
            identities = [identity for identity, _ in response.issued]
            self._streams.note_served(caller, method, identities)


def _moment(seconds: float) -> float:
    """Return the moment in so many seconds, on the loop's clock.

    Long waits end at whole seconds: one wake-up for several streams costs as much as one for one.
    """
    until = asyncio.get_running_loop().time() + seconds
    return until - until % TOGETHER_SECONDS if seconds > RETRY_SECONDS else until
