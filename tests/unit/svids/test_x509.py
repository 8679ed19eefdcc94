"""X509Svids: one SVID for each identity, renewed in time for its watchers."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.entries.identity import Identity
from agent.errors import AuthorityError
from agent.spiffe.ids import SpiffeId
from agent.svids.x509 import BATCH, MAX_PER_ENTRY, X509Svids
from tests.support.fakes import START, FakeClock, FakeLog, identity
from tests.support.signer import TD, FakeSigner

TTL = dt.timedelta(hours=1)
SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)


class World:
    """The SVIDs under test, with their clock, signer and spread."""

    def __init__(self, max_per_entry: int = MAX_PER_ENTRY) -> None:
        self.clock = FakeClock()
        self.signer = FakeSigner(self.clock)
        self.spread: Iterator[float] = iter([])
        self.lines = FakeLog()
        self.svids = X509Svids(
            self.signer,
            self.clock,
            TTL,
            lambda: next(self.spread, 0.0),
            self.lines.log,
            max_per_entry=max_per_entry,
        )

    def at(self, duration: dt.timedelta) -> None:
        """Set the clock and renew everything that is due."""
        self.clock.set(START + duration)
        while self.svids.renew_due():
            pass


@pytest.fixture
def world() -> World:
    return World()


@contextmanager
def watching(world: World, identities: list[Identity]) -> Iterator[asyncio.Event]:
    changed = asyncio.Event()
    with world.svids.watch(identities, changed):
        yield changed


# --- what an SVID is -----------------------------------------------------------------------------


def test_all_callers_with_an_identity_share_one_svid(world: World) -> None:
    first = world.svids.get(identity())
    assert world.svids.get(identity()) is first
    assert world.svids.get(identity("b")) is not first
    assert len(world.signer.issued) == 2


def test_an_svid_has_the_fields_of_its_entry(world: World) -> None:
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


def test_known_issues_nothing(world: World) -> None:
    assert world.svids.known(identity()) is None
    assert world.svids.get(identity()) is world.svids.known(identity())


async def test_an_svid_never_outlives_its_entry(world: World) -> None:
    ending = identity(expires_at=START + 20 * MINUTE)
    svid = world.svids.get(ending)
    assert svid.not_after == START + 20 * MINUTE
    with watching(world, [ending]) as changed:
        world.at(15 * MINUTE)
        assert not changed.is_set(), "a renewed SVID would not last longer"
        world.at(20 * MINUTE)
        assert changed.is_set()
    assert len(world.signer.issued) == 1


async def test_at_the_end_of_its_entry_an_svid_is_forgotten_though_it_is_watched(
    world: World,
) -> None:
    """The watcher may be a client that does not read."""
    ending = identity(expires_at=START + 20 * MINUTE)
    world.svids.get(ending)
    with watching(world, [ending]):
        world.at(20 * MINUTE)
        assert world.svids.first_expiry is None
    assert len(world.svids) == 0


async def test_each_process_has_its_own_svid_if_the_entry_requires_it(world: World) -> None:
    one, other = identity(holder="process:1"), identity(holder="process:2")
    with watching(world, [one]), watching(world, [other]):
        first, second = world.svids.get(one), world.svids.get(other)
        assert first.key_der != second.key_der
        assert first.spiffe_id == second.spiffe_id
        assert world.svids.get(one) is first
    assert len(world.svids) == 0, "no other process can get them"


# --- renewal -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "minutes"), [(-1.0, 27), (0.0, 30), (0.999, 32.997)])
def test_renewal_is_due_around_half_of_the_lifetime(
    world: World, spread: float, minutes: float
) -> None:
    world.spread = iter([spread])
    due = START + dt.timedelta(minutes=minutes)
    assert abs(world.svids.get(identity()).renew_at - due) < SECOND


async def test_a_watched_svid_is_renewed_and_its_watcher_notified(world: World) -> None:
    first = world.svids.get(identity())
    with watching(world, [identity()]) as changed:
        world.at(29 * MINUTE)
        assert not changed.is_set()
        world.at(31 * MINUTE)
        assert changed.is_set()
        second = world.svids.get(identity())
    assert second is not first
    assert second.key_der != first.key_der, "each SVID has a new key"
    assert second.serial != first.serial


async def test_watchers_of_other_identities_are_not_notified(world: World) -> None:
    world.svids.get(identity("a"))
    with watching(world, [identity("b")]) as changed:
        world.at(31 * MINUTE)
        assert not changed.is_set()


async def test_an_unwatched_svid_is_forgotten_and_not_renewed(world: World) -> None:
    world.svids.get(identity())
    world.at(31 * MINUTE)
    assert len(world.signer.issued) == 1
    assert len(world.svids) == 0


async def test_a_call_after_the_renewal_time_gets_a_new_svid(world: World) -> None:
    first = world.svids.get(identity())
    world.clock.set(START + 40 * MINUTE)
    assert world.svids.get(identity()) is not first


async def test_watchers_are_notified_of_an_svid_that_a_call_renewed(world: World) -> None:
    """The renewal loop then finds the new SVID and has nothing to renew."""
    world.svids.get(identity())
    with watching(world, [identity()]) as changed:
        world.clock.set(START + 31 * MINUTE)
        world.svids.get(identity())
        assert changed.is_set()


async def test_the_first_svid_of_an_identity_notifies_no_watcher(world: World) -> None:
    """The caller's own stream watches already, and would attest its caller twice."""
    with watching(world, [identity()]) as changed:
        world.svids.get(identity())
        assert not changed.is_set()


async def test_after_a_suspend_past_expiry_the_first_call_gets_a_valid_svid(world: World) -> None:
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


async def test_an_internal_error_in_a_renewal_does_not_end_the_loop(world: World) -> None:
    class Broken(asyncio.Event):
        def set(self) -> None:
            raise ZeroDivisionError

    world.svids.get(identity("a"))
    world.svids.get(identity("b"))
    with world.svids.watch([identity("a")], Broken()), watching(world, [identity("b")]) as changed:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(world.svids.run())
            await world.clock.advance(31 * MINUTE)
            assert changed.is_set()
            running.cancel()
    [line] = world.lines.of("internal error")
    assert line["where"] == "renewal"


async def test_the_event_loop_gets_its_turn_after_each_batch_of_renewals(world: World) -> None:
    many = [identity(f"n{n}") for n in range(3 * BATCH + 5)]
    with watching(world, many):
        for each in many:
            world.svids.get(each)
        world.clock.set(START + 40 * MINUTE)
        assert [world.svids.renew_due() for _ in range(4)] == [True, True, True, False]
        assert len(world.signer.issued) == 2 * len(many)


# --- failures ------------------------------------------------------------------------------------


async def test_while_signing_fails_the_old_svid_is_served_until_it_expires(world: World) -> None:
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


async def test_a_failed_renewal_is_tried_again_after_ten_seconds(world: World) -> None:
    world.svids.get(identity())
    world.signer.failure = AuthorityError("no key")
    with watching(world, [identity()]) as changed:
        world.at(31 * MINUTE)
        world.signer.failure = None
        changed.clear()
        world.at(31 * MINUTE + 11 * SECOND)
        assert changed.is_set()
        assert len(world.signer.issued) == 2


async def test_every_svid_that_could_not_be_issued_is_tried_again(world: World) -> None:
    world.signer.failure = AuthorityError("no key")
    many = [identity(f"n{n}") for n in range(100)]
    with watching(world, many):
        for each in many:
            with pytest.raises(AuthorityError):
                world.svids.get(each)
        world.signer.failure = None
        world.at(11 * SECOND)
        assert [each.entry_id for each in many if world.svids.known(each) is None] == []


async def test_a_renewal_that_ends_with_an_internal_error_is_tried_again(world: World) -> None:
    world.svids.get(identity())
    world.signer.failure = ZeroDivisionError()
    with watching(world, [identity()]) as changed:
        with pytest.raises(ZeroDivisionError):
            world.at(31 * MINUTE)
        world.signer.failure = None
        world.at(31 * MINUTE + 11 * SECOND)
        assert changed.is_set()
        assert len(world.signer.issued) == 2


async def test_a_clock_that_is_set_back_keeps_every_retry(world: World) -> None:
    world.at(0 * SECOND)
    world.signer.failure = AuthorityError("no key")
    with watching(world, [identity()]) as changed:
        with pytest.raises(AuthorityError):
            world.svids.get(identity())
        world.signer.failure = None
        world.at(-60 * MINUTE)
        assert changed.is_set()
        assert world.svids.known(identity()) is not None


async def test_calls_that_fail_do_not_postpone_the_retry(world: World) -> None:
    world.signer.failure = AuthorityError("no key")
    with watching(world, [identity()]):
        for second in range(9):
            world.clock.set(START + second * SECOND)
            with pytest.raises(AuthorityError):
                world.svids.get(identity())
        world.signer.failure = None
        world.at(11 * SECOND)
        assert world.svids.known(identity()) is not None


async def test_watchers_are_notified_of_a_missing_svid_that_a_call_issued(world: World) -> None:
    world.signer.failure = AuthorityError("no key")
    with watching(world, [identity()]) as changed:
        with pytest.raises(AuthorityError):
            world.svids.get(identity())
        world.signer.failure = None
        world.svids.get(identity())
        assert changed.is_set()


async def test_an_svid_that_could_not_be_issued_is_not_tried_without_a_watcher(
    world: World,
) -> None:
    world.signer.failure = AuthorityError("no key")
    with pytest.raises(AuthorityError):
        world.svids.get(identity("a"))
    with watching(world, [identity("b")]), pytest.raises(AuthorityError):
        world.svids.get(identity("b"))
    world.signer.failure = None
    world.at(11 * SECOND)
    assert not world.signer.issued


async def test_an_svid_of_a_tainted_authority_is_not_handed_out(world: World) -> None:
    first = world.svids.get(identity())
    world.signer.tainted = True
    second = world.svids.get(identity())
    assert second is not first
    world.signer.failure = AuthorityError("no key")
    with pytest.raises(AuthorityError):
        world.svids.get(identity())


# --- clocks that are set back --------------------------------------------------------------------


async def test_after_the_clock_was_set_back_an_svid_from_the_future_is_renewed(
    world: World,
) -> None:
    world.clock.set(START + 60 * MINUTE)
    world.svids.get(identity())
    with watching(world, [identity()]) as changed:
        world.at(60 * MINUTE)
        assert not changed.is_set()
        world.at(30 * MINUTE)
        assert changed.is_set()
        assert world.svids.get(identity()).not_before <= world.clock.now()
    assert len(world.signer.issued) == 2


async def test_a_call_after_the_clock_was_set_back_gets_a_new_svid(world: World) -> None:
    world.clock.set(START + 60 * MINUTE)
    first = world.svids.get(identity())
    world.clock.set(START + 30 * MINUTE)
    assert world.svids.get(identity()) is not first


# --- bounds --------------------------------------------------------------------------------------


async def test_processes_that_come_and_go_leave_nothing_in_memory(world: World) -> None:
    for number in range(500):
        mine = identity(holder=f"process:{number}")
        with watching(world, [mine]), watching(world, [mine]):
            world.svids.get(mine)
    assert len(world.svids) == 0
    assert not world.svids._watchers
    assert len(world.svids._due) == 0


async def test_the_identities_of_one_entry_have_a_bound() -> None:
    world = World(max_per_entry=3)
    of_one = [identity(spiffe_id=SpiffeId(TD, f"/user/{n}")) for n in range(5)]
    with watching(world, of_one[:3]):
        for each in of_one[:3]:
            world.svids.get(each)
        with pytest.raises(AuthorityError, match="entry a already has 3 identities in use"):
            world.svids.get(of_one[3])
        world.svids.get(identity("b"))
    world.svids.get(of_one[3])
    assert len(world.svids) == 2, "the unwatched ones made room"
