"""One SVID an entry, renewed in time, for those who watch."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent import keys
from agent.entries import Entry, EntryId
from agent.errors import AuthorityError
from agent.issuance import X509Issuer, X509SvidRequest, create_x509_authority
from agent.keys import KeyType
from agent.spiffe import SpiffeId, TrustDomain
from agent.svids import Svids
from attestors.api import Selector
from tests.support.fakes import START, FakeClock, Lines

TD = TrustDomain("example.org")
TTL = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)


def entry(name: str = "a", **fields: Any) -> Entry:
    nothing: dict[str, Any] = {
        "x509_svid_ttl": None,
        "jwt_svid_ttl": None,
        "dns_names": (),
        "hint": "",
        "federates_with": (),
        "expires_at": None,
        "origin": "entries.yaml:1",
    }
    return Entry(
        id=EntryId(name),
        spiffe_id=SpiffeId(TD, f"/{name}"),
        selectors=frozenset({Selector("unix", "uid:1")}),
        **{**nothing, **fields},
    )


class Signer:
    """A real issuer that can be told to fail, and counts."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        key = keys.generate(KeyType.EC_P256)
        ca = create_x509_authority(TD, key, now=START, ttl=dt.timedelta(days=30))
        self._issuer = X509Issuer(ca, key, TD)
        self.failure: AuthorityError | None = None
        self.signed: list[X509SvidRequest] = []

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        if self.failure:
            raise self.failure
        self.signed.append(request)
        return self._issuer.issue(self._issuer.prepare(request, self._clock.now()))


class World:
    """The cache under test, with its time, its signer and its luck."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.signer = Signer(self.clock)
        self.luck: Iterator[float] = iter([])
        self.lines = Lines()
        self.svids = Svids(
            self.signer, self.clock, TTL, lambda: next(self.luck, 0.0), self.lines.log
        )

    def at(self, duration: dt.timedelta) -> None:
        self.clock.set(START + duration)
        self.svids.renew_due()


@pytest.fixture
def world() -> World:
    return World()


def test_all_callers_of_an_entry_share_one_svid(world: World) -> None:
    first = world.svids.get(entry())
    assert world.svids.get(entry()) is first
    assert world.svids.get(entry("b")) is not first
    assert len(world.signer.signed) == 2


def test_it_is_what_the_entry_says(world: World) -> None:
    svid = world.svids.get(
        entry(hint="internal", dns_names=("a.internal",), x509_svid_ttl=10 * MINUTE)
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
    assert world.svids.get(entry()).not_after == START + TTL


@pytest.mark.parametrize(("luck", "minutes"), [(-1.0, 27), (0.0, 30), (0.999, 32.997)])
def test_renewal_is_due_around_half_of_life(world: World, luck: float, minutes: float) -> None:
    world.luck = iter([luck])
    due = START + dt.timedelta(minutes=minutes)
    assert abs(world.svids.get(entry()).renew_at - due) < dt.timedelta(seconds=1)


def test_ten_thousand_minted_at_once_do_not_renew_at_once(world: World) -> None:
    world.luck = iter(i / 5000 - 1 for i in range(10_000))
    due = [world.svids._draw_renewal(entry(), START, START + TTL) for _ in range(10_000)]
    per_second = max(
        sum(moment <= each < moment + dt.timedelta(seconds=1) for each in due[::37])
        for moment in due[::97]
    )
    assert max(due) - min(due) > 5 * MINUTE
    assert per_second * 37 < 200


async def test_a_watched_svid_is_renewed_and_its_watcher_told(world: World) -> None:
    first = world.svids.get(entry())
    with world.svids.watch([entry()]) as changed:
        world.at(29 * MINUTE)
        assert not changed.is_set()
        world.at(31 * MINUTE)
        assert changed.is_set()
        second = world.svids.get(entry())
    assert second is not first
    assert second.key_der != first.key_der, "a new key with every SVID"
    assert second.serial != first.serial


async def test_others_are_not_told(world: World) -> None:
    world.svids.get(entry("a"))
    with world.svids.watch([entry("b")]) as changed:
        world.at(31 * MINUTE)
        assert not changed.is_set()


async def test_what_nobody_watches_is_forgotten_not_renewed(world: World) -> None:
    world.svids.get(entry())
    world.at(31 * MINUTE)
    assert len(world.signer.signed) == 1
    assert not world.svids._minted
    assert not world.svids._due


async def test_one_who_asks_after_the_time_gets_a_new_one(world: World) -> None:
    first = world.svids.get(entry())
    world.clock.set(START + 40 * MINUTE)
    assert world.svids.get(entry()) is not first


async def test_after_a_suspend_past_expiry_the_first_answer_is_valid(world: World) -> None:
    world.svids.get(entry())
    world.clock.set(START + dt.timedelta(days=3))
    assert world.svids.get(entry()).not_after > world.clock.now()


async def test_the_renewal_loop_runs_on_the_clock(world: World) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.svids.run())
        world.svids.get(entry())
        with world.svids.watch([entry()]) as changed:
            await world.clock.advance(31 * MINUTE)
            assert changed.is_set()
        running.cancel()


async def test_a_defect_in_one_renewal_does_not_end_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(world.svids, "renew_due", fail)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.svids.run())
        await world.clock.advance(dt.timedelta(seconds=3))
        assert not running.done()
        running.cancel()
    assert len(world.lines.of("renewal broke")) == 3


async def test_while_signing_fails_the_old_one_is_served_until_it_expires(world: World) -> None:
    first = world.svids.get(entry())
    world.signer.failure = AuthorityError("no key")
    with world.svids.watch([entry()]):
        world.at(31 * MINUTE)
        assert world.svids.get(entry()) is first
        assert world.lines.of("svid not renewed")[0]["reason"] == "no key"
        world.clock.set(START + 61 * MINUTE)
        with pytest.raises(AuthorityError):
            world.svids.get(entry())


async def test_a_failed_renewal_is_tried_again_soon(world: World) -> None:
    world.svids.get(entry())
    world.signer.failure = AuthorityError("no key")
    with world.svids.watch([entry()]) as changed:
        world.at(31 * MINUTE)
        world.signer.failure = None
        changed.clear()
        world.at(31 * MINUTE + dt.timedelta(seconds=11))
        assert changed.is_set()
        assert len(world.signer.signed) == 2


async def test_an_svid_never_outlives_its_entry(world: World) -> None:
    ending = entry(expires_at=START + 20 * MINUTE)
    svid = world.svids.get(ending)
    assert svid.not_after == START + 20 * MINUTE
    with world.svids.watch([ending]) as changed:
        world.at(15 * MINUTE)
        assert not changed.is_set(), "a renewal would not last longer"
        world.at(20 * MINUTE)
        assert changed.is_set()
    assert len(world.signer.signed) == 1
    assert not world.svids._minted


async def test_those_who_watch_without_an_svid_are_told_of_the_end_too(world: World) -> None:
    with world.svids.watch([entry(expires_at=START + 20 * MINUTE)]) as changed:
        world.at(19 * MINUTE)
        assert not changed.is_set()
        world.at(20 * MINUTE)
        assert changed.is_set()
    assert not world.signer.signed


async def test_coming_and_going_does_not_pile_up_ends(world: World) -> None:
    for _ in range(100):
        with world.svids.watch([entry(expires_at=START + 20 * MINUTE)]):
            pass
    assert len(world.svids._due) == 1


async def test_wake_all_wakes_also_those_without_entries(world: World) -> None:
    with world.svids.watch([]) as one, world.svids.watch([entry()]) as other:
        world.svids.wake_all()
        assert one.is_set()
        assert other.is_set()


async def test_watching_leaves_nothing_behind(world: World) -> None:
    with world.svids.watch([entry()]), world.svids.watch([entry()]):
        pass
    assert not world.svids._watchers
    assert not world.svids._everybody
