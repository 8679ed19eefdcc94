"""JwtSvids: one token for each identity and set of audiences, while it is fresh and trusted."""

from __future__ import annotations

import datetime as dt

import jwt
import pytest

from agent.errors import AuthorityError
from agent.svids.jwt import JwtSvids
from tests.support.fakes import START, FakeClock, FakeLog, identity
from tests.support.signer import FakeSigner

TTL = dt.timedelta(minutes=10)
MINUTE = dt.timedelta(minutes=1)


class World:
    def __init__(self, cache_size: int = 100) -> None:
        self.clock = FakeClock()
        self.signer = FakeSigner(self.clock)
        self.lines = FakeLog()
        self.svids = JwtSvids(self.signer, self.clock, TTL, self.lines.log, cache_size=cache_size)


@pytest.fixture
def world() -> World:
    return World()


def test_the_order_and_repetition_of_audiences_cause_no_other_token(world: World) -> None:
    first = world.svids.get(identity(), ("b", "a", "b"))
    assert world.svids.get(identity(), ("a", "b")) is first
    claims = jwt.decode(first.token, options={"verify_signature": False})
    assert claims["aud"] == ["b", "a"]
    assert len(world.signer.issued) == 1


def test_each_identity_and_set_of_audiences_has_its_own_token(world: World) -> None:
    tokens = {
        world.svids.get(each, audience).token
        for each in (identity("a"), identity("b"))
        for audience in (("a",), ("b",), ("a", "b"), ("a,b",), ("ab",))
    }
    assert len(tokens) == 10


def test_a_token_is_renewed_at_half_of_its_lifetime(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.clock.set(START + 5 * MINUTE - dt.timedelta(seconds=1))
    assert world.svids.get(identity(), ("a",)) is first
    world.clock.set(START + 5 * MINUTE)
    second = world.svids.get(identity(), ("a",))
    assert second.expires_at == START + 15 * MINUTE


def test_the_lifetime_comes_from_the_entry_else_from_the_default(world: World) -> None:
    own = identity("b", jwt_svid_ttl=2 * MINUTE)
    assert world.svids.get(own, ("a",)).expires_at == START + 2 * MINUTE
    world.svids.default_ttl = MINUTE
    assert world.svids.get(identity(), ("a",)).expires_at == START + MINUTE
    ending = identity("c", expires_at=START + MINUTE / 2)
    assert world.svids.get(ending, ("a",)).expires_at == START + MINUTE / 2


def test_a_token_of_a_tainted_key_is_not_handed_out(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.signer.tainted = True
    assert world.svids.get(identity(), ("a",)) is not first
    world.signer.failure = AuthorityError("no key")
    with pytest.raises(AuthorityError):
        world.svids.get(identity(), ("a",))


def test_while_signing_fails_the_old_token_is_served_until_it_expires(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.signer.failure = AuthorityError("no key")
    world.clock.set(START + 9 * MINUTE)
    for _ in range(100):
        assert world.svids.get(identity(), ("a",)) is first
    assert 0 < len(world.lines.of("svid not renewed")) < 10
    world.clock.set(START + 10 * MINUTE)
    with pytest.raises(AuthorityError):
        world.svids.get(identity(), ("a",))


def test_after_the_clock_was_set_back_a_new_token_is_issued(world: World) -> None:
    first = world.svids.get(identity(), ("a",))
    world.clock.set(START - MINUTE)
    assert world.svids.get(identity(), ("a",)) is not first


def test_the_least_recently_used_token_makes_room() -> None:
    world = World(cache_size=3)
    first = world.svids.get(identity(), ("a",))
    for audience in "bcd":
        assert world.svids.get(identity(), ("a",)) is first, "it is in use, and stays"
        world.svids.get(identity(), (audience,))
    assert len(world.svids) == 3
    assert world.svids.get(identity(), ("a",)) is first
