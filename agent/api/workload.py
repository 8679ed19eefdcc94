"""The SPIFFE Workload API: from an entitled caller to its SVIDs and bundles.

Every message carries the whole state (Workload API section 4.3). Before each message of a stream
the caller is attested and matched again, and also from time to time in between: a stream ends with
PERMISSION_DENIED when there is nothing left to have. The WIT profile is incubating in the standard
and answers UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import grpc
from google.protobuf import json_format

from agent.api.guard import UnsupportedError
from agent.api.messages import Response, jwt_response, parse_wanted, require_audience, x509_response
from agent.authority.authority_set import AuthorityKind
from agent.errors import AuthorityError, NoIdentityError, RequestError, UnavailableError
from agent.pb import workloadapi_pb2 as pb
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.telemetry.throttled_log import ThrottledLog
from agent.workloads.entitlement import Entitlement

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta

    from google.protobuf.message import Message
    from structlog.typing import FilteringBoundLogger

    from agent.api.guard import Guard
    from agent.attestation.result import Attested
    from agent.authority.signer import Authority
    from agent.clock import Clock
    from agent.entries.identity import Identity
    from agent.kernel.caller import Caller
    from agent.spiffe.bundle import TrustBundle
    from agent.spiffe.ids import TrustDomain
    from agent.svids.jwt import JwtSvids
    from agent.svids.x509 import X509Svids
    from agent.svids.x509_svid import X509Svid
    from agent.telemetry.audit import Issued
    from agent.workloads.entitlement import Entitlements
    from agent.workloads.streams import OpenStream, Streams

SERVICE = pb.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"].full_name

# While an attestor fails, its caller's stream asks again this often for what may be missing.
RETRY_SECONDS = 10.0
# Streams whose callers are to be looked at again within such a time are looked at together.
TOGETHER_SECONDS = 1.0

T = TypeVar("T")
Pushes: TypeAlias = "AsyncGenerator[Message, None]"


class Entitle(Protocol):
    """How a method finds out what its caller may have; see Entitlements.of."""

    def __call__(self, caller: Caller, *, releasing: bool = ...) -> Awaitable[Entitlement]:
        """See Entitlements.of."""
        ...


@dataclass(frozen=True, slots=True)
class _Method:
    """A method whose stream stays open: which authorities it shows, and whether SVIDs too."""

    name: str
    kind: AuthorityKind
    has_svids: bool = False


METHODS = tuple(pb.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"].methods_by_name)
"""The names of all methods."""

_X509_SVID = _Method("FetchX509SVID", AuthorityKind.X509, has_svids=True)
_X509_BUNDLES = _Method("FetchX509Bundles", AuthorityKind.X509)
_JWT_BUNDLES = _Method("FetchJWTBundles", AuthorityKind.JWT)

STREAMING = tuple(each.name for each in (_X509_SVID, _X509_BUNDLES, _JWT_BUNDLES))
"""The names of those whose streams stay open."""


@dataclass(frozen=True, slots=True)
class _KeptResponse:
    """What all get who have the same SVIDs, while the bundle is this one."""

    bundle: TrustBundle
    serials: tuple[int, ...]
    response: Response[pb.X509SVIDResponse]


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
        return interval * (0.95 + 0.05 * self.spread())


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPolicy:
    """What the operator decides about serving."""

    review: Review
    allow_unauthenticated_verifiers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuers:
    """Where SVIDs and bundles come from."""

    authority: Authority
    x509: X509Svids
    jwt: JwtSvids


class WorkloadApi:
    """The methods, as coroutines over a caller and a request; `handlers` dresses them for gRPC.

    `policy` may be replaced at any time. `note_issued` is told of each SVID before it goes out, and
    on what evidence it does.
    """

    def __init__(
        self,
        *,
        entitlements: Entitlements,
        issuers: Issuers,
        streams: Streams,
        clock: Clock,
        policy: ServingPolicy,
        note_issued: Callable[[Caller, Issued, Attested | None], None],
        log: FilteringBoundLogger,
    ) -> None:
        self.policy = policy
        self._note_issued = note_issued
        self._entitlements = entitlements
        self._svids = issuers.x509
        self._jwt_svids = issuers.jwt
        self._authority = issuers.authority
        self._streams = streams
        self._clock = clock
        self._throttled = ThrottledLog(log)
        # By the first SVID in it: a response holds keys, and is forgotten with them.
        self._x509_responses: WeakKeyDictionary[X509Svid, _KeptResponse] = WeakKeyDictionary()

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
        return self._push(_X509_SVID, caller, self._entitlements.of, self._x509_response)

    def fetch_x509_bundles(self, caller: Caller, _request: pb.X509BundlesRequest) -> Pushes:
        """The X.509 authorities that the caller may trust, and again at every change."""
        return self._push(_X509_BUNDLES, caller, self._verifier, self._x509_bundles_response)

    def fetch_jwt_bundles(self, caller: Caller, _request: pb.JWTBundlesRequest) -> Pushes:
        """The JWT authorities that the caller may trust, and again at every change."""
        return self._push(_JWT_BUNDLES, caller, self._verifier, self._jwt_bundles_response)

    async def fetch_jwt_svid(
        self, caller: Caller, request: pb.JWTSVIDRequest
    ) -> pb.JWTSVIDResponse:
        """A JWT-SVID for every identity of the caller, or for the one that it asks for."""
        audience = require_audience(request.audience)
        wanted = parse_wanted(request.spiffe_id)
        await self._authority.be_able_to_sign()
        entitlement = await self._entitlements.of(caller)
        identities = [i for i in entitlement.identities if wanted in {None, i.spiffe_id}]
        if not identities:
            raise NoIdentityError(f"the caller asked for {wanted}, which is none of its identities")
        response = self._jwt_response(identities, audience)
        self._note_served(caller, entitlement, response)
        return response.message

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
        method: _Method,
        caller: Caller,
        entitle: Entitle,
        compose: Callable[[Sequence[Identity]], Response[Message]],
    ) -> Pushes:
        """A response at once, and after every change, for as long as the caller is entitled.

        One that is equal to the one before is not sent.
        """
        sent: Message | None = None
        with self._streams.open(caller, method.name, method.kind) as stream:
            while True:
                # What changes from here on is seen, or makes another turn.
                stream.changed.clear()
                self._streams.check_open()
                await self._authority.be_able_to_sign()
                entitlement = await entitle(caller)
                self._streams.show(stream, entitlement)
                watched = entitlement.identities if method.has_svids else ()
                with self._svids.watch(watched, stream.changed):
                    response = compose(entitlement.identities)
                    if response.message != sent:
                        self._note_served(caller, entitlement, response)
                        sent = response.message
                        yield sent
                    while not await self._is_due(stream, entitle):
                        pass

    async def _is_due(self, stream: OpenStream, entitle: Entitle) -> bool:
        """Wait for a change or for the next look at the caller: whether it is to get a message.

        Raises:
            PeerError, NoIdentityError: it may have nothing any more.
        """
        served = stream.entitlement
        if served is None:
            return True
        moment = _moment(self.policy.review.seconds(complete=served.complete))
        if await stream.changed.wait_until(moment):
            return True
        try:
            now = await entitle(stream.caller, releasing=False)
        except UnavailableError:
            return False  # nobody knows; what it has it keeps, and gets nothing new
        if now.identities == served.identities:
            self._streams.show(stream, now)
            return False
        return now.complete or not set(now.identities) < set(served.identities)

    async def _verifier(self, caller: Caller, *, releasing: bool = True) -> Entitlement:
        """Who has an identity may see bundles; others only if the operator allows it (Q-13)."""
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

    def _x509_response(self, identities: Sequence[Identity]) -> Response[pb.X509SVIDResponse]:
        bundle = self._authority.bundle
        made = self._each(identities, self._svids.get)
        serials, first = tuple(svid.serial for _, svid in made), made[0][1]
        kept = self._x509_responses.get(first)
        if kept is None or kept.bundle is not bundle or kept.serials != serials:
            kept = _KeptResponse(bundle, serials, x509_response(made, bundle.x509_der()))
            self._x509_responses[first] = kept
        return kept.response

    def _jwt_response(
        self, identities: Sequence[Identity], audience: tuple[str, ...]
    ) -> Response[pb.JWTSVIDResponse]:
        made = self._each(identities, lambda each: self._jwt_svids.get(each, audience))
        return jwt_response(made, audience)

    def _x509_bundles_response(
        self, _identities: Sequence[Identity]
    ) -> Response[pb.X509BundlesResponse]:
        bundles = {td.id: bundle.x509_der() for td, bundle in self._bundles().items()}
        return Response(pb.X509BundlesResponse(bundles=bundles))

    def _jwt_bundles_response(
        self, _identities: Sequence[Identity]
    ) -> Response[pb.JWTBundlesResponse]:
        bundles = {td.id: bundle.jwks() for td, bundle in self._bundles().items()}
        return Response(pb.JWTBundlesResponse(bundles=bundles))

    def _each(
        self, identities: Sequence[Identity], make: Callable[[Identity], T]
    ) -> list[tuple[Identity, T]]:
        """One SVID an identity. One that cannot be served now does not hold up the others.

        Raises:
            AuthorityError: none can be served.
        """
        made: list[tuple[Identity, T]] = []
        failure: AuthorityError | None = None
        for identity in identities:
            try:
                made.append((identity, make(identity)))
            except AuthorityError as error:
                failure = error
                entry_id = identity.entry_id
                self._throttled.warning(
                    "svid not issued", entry_id, entry_id=entry_id, reason=str(error)
                )
        if failure is not None and not made:
            raise failure
        return made

    def _note_served(
        self, caller: Caller, entitlement: Entitlement, response: Response[Message]
    ) -> None:
        for _, svid in response.issued:
            self._note_issued(caller, svid, entitlement.attestation)
        if response.issued:
            kind = response.issued[0][1].kind
            self._streams.note_served(caller, kind, [identity for identity, _ in response.issued])


def _moment(seconds: float) -> float:
    """So many seconds from now, on the loop's clock.

    Long waits end in company: to wake up for one stream costs as much as for several.
    """
    until = asyncio.get_running_loop().time() + seconds
    return until - until % TOGETHER_SECONDS if seconds > RETRY_SECONDS else until
