"""One SVID an entry, renewed in time, for those who watch."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.authority.x509_issuer import X509Issuer, X509SvidRequest, create_x509_authority
from agent.entries.identity import Identity
from agent.errors import AuthorityError
from agent.spiffe import keys
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids import x509 as x509_svids
from agent.svids.x509 import X509Svids
from tests.support.fakes import START, FakeClock, Lines, identity

TD = TrustDomain("example.org")
TTL = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)


class Signer:
    """A real issuer that can be told to fail, and counts."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        key = keys.generate(KeyType.EC_P256)
        ca = create_x509_authority(TD, key, now=START, ttl=dt.timedelta(days=30))
        self._issuer = X509Issuer(ca, key, TD)
        self.failure: AuthorityError | None = None
        self.tainted = False
        self.signed: list[X509SvidRequest] = []

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        if self.failure:
            raise self.failure
        self.signed.append(request)
        return self._issuer.issue(self._issuer.prepare(request, self._clock.now()))

    def trusts(self, authority_id: str) -> bool:
        assert len(authority_id) == 40
        return not self.tainted


class World:
    """The cache under test, with its time, its signer and its luck."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.signer = Signer(self.clock)
        self.luck: Iterator[float] = iter([])
        self.lines = Lines()
        self.svids = X509Svids(
            self.signer, self.clock, TTL, lambda: next(self.luck, 0.0), self.lines.log
        )

    def at(self, duration: dt.timedelta) -> None:
        self.clock.set(START + duration)
        self.svids.renew_due()


@pytest.fixture
def world() -> World:
    return World()


@contextmanager
def watching(world: World, identities: list[Identity]) -> Iterator[asyncio.Event]:
    changed = asyncio.Event()
    with world.svids.watch(identities, changed):
        yield changed


def test_all_callers_of_an_entry_share_one_svid(world: World) -> None:
    first = world.svids.get(identity())
    assert world.svids.get(identity()) is first
    assert world.svids.get(identity("b")) is not first
    assert len(world.signer.signed) == 2


def test_it_is_what_the_entry_says(world: World) -> None:
    svid = world.svids.get(
        identity(hint="internal", dns_names=("a.internal",), x509_svid_ttl=10 * MINUTE)
    )
    [certificate] = [x509.load_der_x509_certificate(svid.chain_der)]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/a"]
    assert names.get_values_for_type(x509.DNSName) == ["a.internal"]
    assert certificate.not_valid_after_utc == START + 10 * MINUTE
    key = serialization.load_der_private_key(svid.key_der, None)
    assert key.public_key() == certificate.public_key()
    assert svid.hint == "internal"
    assert svid.serial == certificate.serial_number


def test_an_entry_without_a_ttl_gets_the_default(world: World) -> None:
    assert world.svids.get(identity()).not_after == START + TTL


@pytest.mark.parametrize(("luck", "minutes"), [(-1.0, 27), (0.0, 30), (0.999, 32.997)])
def test_renewal_is_due_around_half_of_life(world: World, luck: float, minutes: float) -> None:
    world.luck = iter([luck])
    due = START + dt.timedelta(minutes=minutes)
    assert abs(world.svids.get(identity()).renew_at - due) < dt.timedelta(seconds=1)


def test_ten_thousand_minted_at_once_do_not_renew_at_once(world: World) -> None:
    world.luck = iter(i / 5000 - 1 for i in range(10_000))
    due = [world.svids._draw_renewal(identity(), START, START + TTL) for _ in range(10_000)]
    per_second = max(
        sum(moment <= each < moment + dt.timedelta(seconds=1) for each in due[::37])
        for moment in due[::97]
    )
    assert max(due) - min(due) > 5 * MINUTE
    assert per_second * 37 < 200


async def test_a_watched_svid_is_renewed_and_its_watcher_told(world: World) -> None:
    first = world.svids.get(identity())
    with watching(world, [identity()]) as changed:
        world.at(29 * MINUTE)
        assert not changed.is_set()
        world.at(31 * MINUTE)
        assert changed.is_set()
        second = world.svids.get(identity())
    assert second is not first
    assert second.key_der != first.key_der, "a new key with every SVID"
    assert second.serial != first.serial


async def test_others_are_not_told(world: World) -> None:
    world.svids.get(identity("a"))
    with watching(world, [identity("b")]) as changed:
        world.at(31 * MINUTE)
        assert not changed.is_set()


async def test_what_nobody_watches_is_forgotten_not_renewed(world: World) -> None:
    world.svids.get(identity())
    world.at(31 * MINUTE)
    assert len(world.signer.signed) == 1
    assert not world.svids._minted
    assert not world.svids._due


async def test_one_who_asks_after_the_time_gets_a_new_one(world: World) -> None:
    first = world.svids.get(identity())
    world.clock.set(START + 40 * MINUTE)
    assert world.svids.get(identity()) is not first


async def test_after_a_suspend_past_expiry_the_first_answer_is_valid(world: World) -> None:
    world.svids.get(identity())
    world.clock.set(START + dt.timedelta(days=3))
    assert world.svids.get(identity()).not_after > world.clock.now()


async def test_the_renewal_loop_runs_on_the_clock(world: World) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.svids.run())
        world.svids.get(identity())
        with watching(world, [identity()]) as changed:
            await world.clock.advance(31 * MINUTE)
            assert changed.is_set()
        running.cancel()


async def test_a_defect_in_one_renewal_does_not_end_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(world.svids, "renew_due", fail)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.svids.run())
        await world.clock.advance(dt.timedelta(seconds=3))
        assert not running.done()
        running.cancel()
    assert len(world.lines.of("internal error")) == 3


async def test_while_signing_fails_the_old_one_is_served_until_it_expires(world: World) -> None:
    first = world.svids.get(identity())
    world.signer.failure = AuthorityError("no key")
    with watching(world, [identity()]):
        world.at(31 * MINUTE)
        for _ in range(100):
            assert world.svids.get(identity()) is first
        assert world.lines.of("svid not renewed")[0]["reason"] == "no key"
        assert len(world.lines.of("svid not renewed")) < 10
        world.clock.set(START + 61 * MINUTE)
        with pytest.raises(AuthorityError):
            world.svids.get(identity())


async def test_a_failed_renewal_is_tried_again_soon(world: World) -> None:
    world.svids.get(identity())
    world.signer.failure = AuthorityError("no key")
    with watching(world, [identity()]) as changed:
        world.at(31 * MINUTE)
        world.signer.failure = None
        changed.clear()
        world.at(31 * MINUTE + dt.timedelta(seconds=11))
        assert changed.is_set()
        assert len(world.signer.signed) == 2


async def test_an_svid_never_outlives_its_identity(world: World) -> None:
    ending = identity(expires_at=START + 20 * MINUTE)
    svid = world.svids.get(ending)
    assert svid.not_after == START + 20 * MINUTE
    with watching(world, [ending]) as changed:
        world.at(15 * MINUTE)
        assert not changed.is_set(), "a renewal would not last longer"
        world.at(20 * MINUTE)
        assert changed.is_set()
    assert len(world.signer.signed) == 1


async def test_at_the_end_of_its_identity_an_svid_is_forgotten(world: World) -> None:
    """Though somebody watches it still, such as a client that does not read."""
    ending = identity(expires_at=START + 20 * MINUTE)
    world.svids.get(ending)
    with watching(world, [ending]):
        world.at(20 * MINUTE)
        assert world.svids.first_expiry is None, "what is over is no SVID that was not renewed"
    assert len(world.svids) == 0


async def test_watching_leaves_nothing_behind(world: World) -> None:
    with watching(world, [identity()]), watching(world, [identity()]):
        pass
    assert not world.svids._watchers


async def test_one_that_could_not_be_made_is_tried_again_while_somebody_waits(world: World) -> None:
    world.signer.failure = AuthorityError("no key")
    with watching(world, [identity()]) as changed:
        with pytest.raises(AuthorityError):
            world.svids.get(identity())
        world.signer.failure = None
        world.at(dt.timedelta(seconds=11))
        assert changed.is_set()
    assert len(world.signer.signed) == 1


async def test_what_a_tainted_authority_signed_is_not_handed_out(world: World) -> None:
    first = world.svids.get(identity())
    world.signer.tainted = True
    second = world.svids.get(identity())
    assert second is not first
    world.signer.failure = AuthorityError("no key")
    with pytest.raises(AuthorityError):
        world.svids.get(identity())


async def test_a_clock_that_is_set_back_renews_what_was_made_in_the_future(world: World) -> None:
    world.clock.set(START + 60 * MINUTE)
    world.svids.get(identity())
    with watching(world, [identity()]) as changed:
        world.at(60 * MINUTE)
        assert not changed.is_set()
        world.at(30 * MINUTE)
        assert changed.is_set()
        assert world.svids.get(identity()).not_before <= world.clock.now()
    assert len(world.signer.signed) == 2


async def test_one_who_asks_after_the_clock_was_set_back_gets_a_new_one(world: World) -> None:
    world.clock.set(START + 60 * MINUTE)
    first = world.svids.get(identity())
    world.clock.set(START + 30 * MINUTE)
    assert world.svids.get(identity()) is not first


async def test_each_process_has_its_own_if_the_entry_says_so(world: World) -> None:
    one, other = identity(holder="process:1"), identity(holder="process:2")
    with watching(world, [one]), watching(world, [other]):
        first, second = world.svids.get(one), world.svids.get(other)
        assert first.key_der != second.key_der
        assert first.spiffe_id == second.spiffe_id
        assert world.svids.get(one) is first
    assert len(world.svids) == 0, "nobody else can ever have them"


async def test_coming_and_going_piles_nothing_up(world: World) -> None:
    for number in range(500):
        mine = identity(holder=f"process:{number}")
        with watching(world, [mine]):
            world.svids.get(mine)
    assert not world.svids._minted
    assert len(world.svids._due) < 200


async def test_the_identities_of_an_entry_have_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(x509_svids, "MAX_PER_ENTRY", 3)
    of_one = [identity(spiffe_id=SpiffeId(TD, f"/user/{n}")) for n in range(5)]
    with watching(world, of_one[:3]):
        for each in of_one[:3]:
            world.svids.get(each)
        with pytest.raises(AuthorityError, match="entry a gives 3 identities already, all in use"):
            world.svids.get(of_one[3])
        world.svids.get(identity("b"))
    world.svids.get(of_one[3])
    assert len(world.svids) == 2, "those that nobody watched made room"


async def test_thousands_are_renewed_without_holding_up_everybody_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(x509_svids, "BATCH", 10)
    many = [identity(f"n{n}") for n in range(35)]
    with watching(world, many):
        for each in many:
            world.svids.get(each)
        world.clock.set(START + 40 * MINUTE)
        assert [world.svids.renew_due() for _ in range(4)] == [True, True, True, False]
        assert len(world.signer.signed) == 70


def test_what_is_there_can_be_looked_at_without_making_it(world: World) -> None:
    assert world.svids.known(identity()) is None
    assert world.svids.get(identity()) is world.svids.known(identity())
