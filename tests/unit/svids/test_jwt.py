"""One token for an identity and a set of audiences, while it is fresh and its key is trusted."""

from __future__ import annotations

import datetime as dt

import jwt
import pytest

from agent.authority.jwt_issuer import JwtIssuer, JwtSvid, JwtSvidRequest
from agent.errors import AuthorityError
from agent.spiffe import keys
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids.jwt import JwtSvids
from tests.support.fakes import START, FakeClock, Lines, identity

TTL = dt.timedelta(minutes=10)
MINUTE = dt.timedelta(minutes=1)


class Signer:
    """A real issuer that can be told to fail, and counts."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        key = keys.generate(KeyType.EC_P256)
        day = START + dt.timedelta(days=1)
        self._issuer = JwtIssuer("k", key, day, TrustDomain("example.org"))
        self.failure: AuthorityError | None = None
        self.tainted = False
        self.signed = 0

    def sign_jwt(self, request: JwtSvidRequest) -> JwtSvid:
        if self.failure:
            raise self.failure
        self.signed += 1
        return self._issuer.issue(self._issuer.prepare(request, self._clock.now()))

    def trusts(self, authority_id: str) -> bool:
        assert authority_id == "k"
        return not self.tainted


class World:
    def __init__(self, cache_size: int = 100) -> None:
        self.clock = FakeClock()
        self.signer = Signer(self.clock)
        self.lines = Lines()
        self.svids = JwtSvids(self.signer, self.clock, TTL, self.lines.log, cache_size=cache_size)


@pytest.fixture
def world() -> World:
    return World()


def test_an_audience_is_a_set(world: World) -> None:
    first = world.svids.get(identity(), ("b", "a", "b"))
    assert world.svids.get(identity(), ("a", "b")) is first
    claims = jwt.decode(first.token, options={"verify_signature": False})
    assert claims["aud"] == ["b", "a"]
    assert world.signer.signed == 1


def test_other_audiences_and_other_identities_have_tokens_of_their_own(world: World) -> None:
    tokens = {
        world.svids.get(who, audience).token
        for who in (identity("a"), identity("b"))
        for audience in (("a",), ("b",), ("a", "b"), ("a,b",), ("ab",))
    }
    assert len(tokens) == 10


def test_it_is_renewed_at_half_of_its_life(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.clock.set(START + 5 * MINUTE - dt.timedelta(seconds=1))
    assert world.svids.get(identity(), ("a",)) is first
    world.clock.set(START + 5 * MINUTE)
    second = world.svids.get(identity(), ("a",))
    assert second.expires_at == START + 15 * MINUTE


def test_lives_are_those_of_the_entry_or_the_default(world: World) -> None:
    own = identity("b", jwt_svid_ttl=2 * MINUTE)
    assert world.svids.get(own, ("a",)).expires_at == START + 2 * MINUTE
    world.svids.default_ttl = MINUTE
    assert world.svids.get(identity(), ("a",)).expires_at == START + MINUTE
    ending = identity("c", expires_at=START + MINUTE / 2)
    assert world.svids.get(ending, ("a",)).expires_at == START + MINUTE / 2


def test_one_of_a_tainted_key_is_not_handed_out(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.signer.tainted = True
    assert world.svids.get(identity(), ("a",)) is not first
    world.signer.failure = AuthorityError("no key")
    with pytest.raises(AuthorityError):
        world.svids.get(identity(), ("a",))


def test_while_signing_fails_the_old_one_serves_until_it_expires(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.signer.failure = AuthorityError("no key")
    world.clock.set(START + 9 * MINUTE)
    for _ in range(100):
        assert world.svids.get(identity(), ("a",)) is first
    assert 0 < len(world.lines.of("svid not renewed")) < 10
    world.clock.set(START + 10 * MINUTE)
    with pytest.raises(AuthorityError):
        world.svids.get(identity(), ("a",))


def test_a_clock_that_is_set_back_makes_a_new_one(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.clock.set(START - MINUTE)
    assert world.svids.get(identity(), ("a",)) is not first


def test_callers_cannot_fill_the_memory() -> None:
    world = World(cache_size=3)
    first = world.svids.get(identity(), ("a",))
    for audience in "bcd":
        assert world.svids.get(identity(), ("a",)) is first, "it is in use, and stays"
        world.svids.get(identity(), (audience,))
    assert len(world.svids) == 3
    assert world.svids.get(identity(), ("a",)) is first
