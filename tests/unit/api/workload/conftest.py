"""The methods of the Workload API for a caller whose entitlement the test decides."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.api.workload import Issuers, Review, ServingPolicy, WorkloadApi
from agent.attestation.result import Attested, Report
from agent.authority.embedded import AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.entries.identity import Identity
from agent.errors import VouchdError
from agent.kernel.caller import Caller
from agent.pb import workloadapi_pb2 as pb
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids.jwt import JwtSvids
from agent.svids.x509 import X509Svids
from agent.workloads.entitlement import Entitlement
from agent.workloads.streams import Streams
from attestors.api import Selector
from tests.support.fakes import FakeClock, Lines, identity

TD = TrustDomain("example.org")


class Somebody(SimpleNamespace):
    """As much of a caller as the API looks at."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


CALLER = cast(
    "Caller",
    Somebody(credentials=SimpleNamespace(pid=1, uid=2), process=SimpleNamespace(inode=7)),
)
HOUR = dt.timedelta(hours=1)


class Site:
    """The API with real SVIDs and a real authority, and a caller who may have `entries`."""

    def __init__(self, keystore: Keystore, *, open_verifiers: bool = False) -> None:
        self.identities: tuple[Identity, ...] | VouchdError = (identity("a"),)
        self.complete = True
        self.asked: list[bool] = []
        self.selectors: frozenset[Selector] = frozenset()
        self.clock = FakeClock()
        self.lines = Lines()
        policy = AuthorityPolicy(
            trust_domain=TD, key_type=KeyType.EC_P256, ttl=dt.timedelta(days=1)
        )
        self.authority = EmbeddedAuthority.open(policy, keystore, self.clock, self.lines.log)
        self.svids = X509Svids(self.authority, self.clock, HOUR, lambda: 0.0, self.lines.log)
        self.streams = Streams(self.clock)
        self.authority.on_change(lambda kind: self.streams.wake(lambda s: s.kind is kind))
        self.api = WorkloadApi(
            entitlements=cast("Any", self),
            issuers=Issuers(
                authority=self.authority,
                x509=self.svids,
                jwt=JwtSvids(self.authority, self.clock, HOUR, self.lines.log),
            ),
            streams=self.streams,
            clock=self.clock,
            policy=ServingPolicy(
                review=Review(dt.timedelta(milliseconds=10), lambda: 0.0),
                allow_unauthenticated_verifiers=open_verifiers,
            ),
            note_issued=self.lines.audit().issued,
            log=self.lines.log,
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
def site(keystore: Keystore) -> Iterator[Site]:
    site = Site(keystore)
    yield site
    site.authority.close()


async def first_x509(site: Site) -> pb.X509SVIDResponse:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    response = await anext(stream)
    await stream.aclose()
    assert isinstance(response, pb.X509SVIDResponse)
    return response


def jwt_request(*audience: str, spiffe_id: str = "") -> pb.JWTSVIDRequest:
    return pb.JWTSVIDRequest(audience=audience or ["a"], spiffe_id=spiffe_id)


def bundle_streams(site: Site) -> list[AsyncGenerator[Any, None]]:
    return [
        site.api.fetch_x509_bundles(CALLER, pb.X509BundlesRequest()),
        site.api.fetch_jwt_bundles(CALLER, pb.JWTBundlesRequest()),
    ]
