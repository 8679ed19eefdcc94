"""Authorities that are opened one after another on one data directory."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.authority.authority_set import AuthorityKind
from agent.authority.embedded import AuthorityPolicy, EmbeddedAuthority
from agent.authority.jwt_issuer import JwtSvidRequest
from agent.authority.keystore import Keystore
from agent.authority.x509_template import X509SvidRequest
from agent.spiffe import keys
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.spiffe.keys import KeyType
from tests.support.fakes import FakeClock, FakeLog

TD = TrustDomain("example.org")
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)
POLICY = AuthorityPolicy(trust_domain=TD, key_type=KeyType.EC_P256, ttl=DAY)
WORKLOAD = SpiffeId(TD, "/w")


@pytest.fixture
def keystore(tmp_path: Path) -> Iterator[Keystore]:
    keystore = Keystore(tmp_path / "data")
    yield keystore
    keystore.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Open = Callable[..., EmbeddedAuthority]


@pytest.fixture
def open_authority(keystore: Keystore, clock: FakeClock) -> Iterator[Open]:
    opened: list[EmbeddedAuthority] = []

    def open_again(
        policy: AuthorityPolicy = POLICY, lines: FakeLog | None = None
    ) -> EmbeddedAuthority:
        opened.append(EmbeddedAuthority.open(policy, keystore, clock, (lines or FakeLog()).log))
        return opened[-1]

    yield open_again
    for authority in opened:
        authority.close()


def x509_request(ttl: dt.timedelta = HOUR) -> X509SvidRequest:
    key = keys.generate(KeyType.EC_P256)
    return X509SvidRequest(spiffe_id=WORKLOAD, public_key=key.public_key(), ttl=ttl)


def jwt_request() -> JwtSvidRequest:
    return JwtSvidRequest(spiffe_id=WORKLOAD, audience=("a",), ttl=HOUR)


def states(authority: EmbeddedAuthority, kind: AuthorityKind) -> list[str]:
    return [each.state for each in authority.authorities.of(kind)]


async def until(readiness: Callable[[], bool]) -> None:
    while not readiness():
        await asyncio.sleep(0.001)
