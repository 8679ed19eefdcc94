"""The Workload API with a real authority and real SVIDs, and an entitlement set by the test."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from google.protobuf.message import Message

from agent.api.workload import Review, ServingPolicy
from agent.api.workload_messages import Response
from agent.attestation.result import Attested, Report
from agent.authority.embedded import AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.entries.identity import Identity
from agent.errors import VouchdError
from agent.kernel.caller import Caller
from agent.pb import workloadapi_pb2 as pb
from agent.service.wiring import make_issuing, make_streams, make_workload_api
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.transport.grpc_protocol import PREFIX_BYTES
from agent.workloads.entitlement import Entitlement
from attestors.api import Selector
from tests.support.fakes import FakeClock, FakeLog, identity
from tests.support.settings import settings

TD = TrustDomain("example.org")
MessageT = TypeVar("MessageT", bound=Message)


class Stub(SimpleNamespace):
    """The part of a caller that the API reads."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


CALLER = cast(
    "Caller",
    Stub(credentials=SimpleNamespace(pid=1, uid=2), process=SimpleNamespace(inode=7)),
)
HOUR = dt.timedelta(hours=1)
SETTINGS = settings(authority={"jwt_svid_ttl": "1h"})


class ServedApi:
    """The Workload API for one caller; `asked` records `releasing` of each attestation."""

    def __init__(self, keystore: Keystore, *, open_verifiers: bool = False) -> None:
        self.identities: tuple[Identity, ...] | VouchdError = (identity("a"),)
        self.complete = True
        self.asked: list[bool] = []
        self.selectors: frozenset[Selector] = frozenset()
        self.clock = FakeClock()
        self.lines = FakeLog()
        policy = AuthorityPolicy(
            trust_domain=TD, key_type=KeyType.EC_P256, ttl=dt.timedelta(days=1)
        )
        self.authority = EmbeddedAuthority.open(policy, keystore, self.clock, self.lines.log)
        issuing = make_issuing(
            SETTINGS, self.authority, self.clock, self.lines.log, spread=lambda: 0.0
        )
        self.svids = issuing.x509_svids
        self.streams = make_streams(self.authority, self.clock)
        self.api = make_workload_api(
            SETTINGS,
            issuing,
            cast("Any", self),
            self.streams,
            self.clock,
            self.lines.audit().issued,
            self.lines.log,
        )
        self.api.policy = ServingPolicy(
            review=Review(dt.timedelta(milliseconds=10), lambda: 0.0),
            allow_unauthenticated_verifiers=open_verifiers,
        )

    async def of(self, caller: Caller, *, releasing: bool = True) -> Entitlement:
        assert caller is CALLER
        self.asked.append(releasing)
        if isinstance(self.identities, VouchdError):
            raise self.identities
        failed = () if self.complete else (Report(attestor="fake", failure="it is down"),)
        known = Attested(selectors=self.selectors, reports=failed)
        return Entitlement(identities=self.identities, attestation=known)


@pytest.fixture
def keystore(tmp_path: Path) -> Iterator[Keystore]:
    keystore = Keystore(tmp_path / "data")
    yield keystore
    keystore.close()


@pytest.fixture
def served(keystore: Keystore) -> Iterator[ServedApi]:
    served = ServedApi(keystore)
    yield served
    served.authority.close()


def decoded(kind: type[MessageT], response: Response) -> MessageT:
    return kind.FromString(response.framed[PREFIX_BYTES:])


def x509(response: Response) -> pb.X509SVIDResponse:
    return decoded(pb.X509SVIDResponse, response)


async def first_response(served: ServedApi) -> Response:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    response = await anext(stream)
    await stream.aclose()
    return response


async def first_x509(served: ServedApi) -> pb.X509SVIDResponse:
    return x509(await first_response(served))


async def fetch_jwt(served: ServedApi, request: pb.JWTSVIDRequest) -> pb.JWTSVIDResponse:
    return decoded(pb.JWTSVIDResponse, await served.api.fetch_jwt_svid(CALLER, request))


async def validate(
    served: ServedApi, request: pb.ValidateJWTSVIDRequest
) -> pb.ValidateJWTSVIDResponse:
    return decoded(pb.ValidateJWTSVIDResponse, await served.api.validate_jwt_svid(CALLER, request))


def jwt_request(*audience: str, spiffe_id: str = "") -> pb.JWTSVIDRequest:
    return pb.JWTSVIDRequest(audience=audience or ["a"], spiffe_id=spiffe_id)


def bundle_streams(served: ServedApi) -> list[AsyncGenerator[Any, None]]:
    return [
        served.api.fetch_x509_bundles(CALLER, pb.X509BundlesRequest()),
        served.api.fetch_jwt_bundles(CALLER, pb.JWTBundlesRequest()),
    ]
