"""An authority that may be opened again and again, on one disk."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import keys
from agent.authorities import Kind
from agent.authority import Authority, AuthorityPolicy
from agent.jwt_issuance import JwtSvidRequest
from agent.keys import KeyType
from agent.keystore import Keystore
from agent.spiffe import SpiffeId, TrustDomain
from agent.x509_issuance import X509SvidRequest
from tests.support.fakes import FakeClock, Lines

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


Open = Callable[..., Authority]


@pytest.fixture
def open_authority(keystore: Keystore, clock: FakeClock) -> Iterator[Open]:
    opened: list[Authority] = []

    def open_one(policy: AuthorityPolicy = POLICY, lines: Lines | None = None) -> Authority:
        opened.append(Authority.open(policy, keystore, clock, (lines or Lines()).log))
        return opened[-1]

    yield open_one
    for authority in opened:
        authority.close()


def x509_request(ttl: dt.timedelta = HOUR) -> X509SvidRequest:
    key = keys.generate(KeyType.EC_P256)
    return X509SvidRequest(spiffe_id=WORKLOAD, public_key=key.public_key(), ttl=ttl)


def jwt_request() -> JwtSvidRequest:
    return JwtSvidRequest(spiffe_id=WORKLOAD, audience=("a",), ttl=HOUR)


def states(authority: Authority, kind: Kind) -> list[str]:
    return [each.state for each in authority.authorities.of(kind)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)
