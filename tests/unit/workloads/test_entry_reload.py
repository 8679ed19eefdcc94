"""Reload of the entries: which streams wake, and what a mistake changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

from agent.attestation.attestor import WorkloadAttestor
from agent.attestation.result import Attested
from agent.authority.authority_set import AuthorityKind
from agent.entries.entry import Entry, EntryId, EntrySet
from agent.entries.schema import LoadedEntries
from agent.errors import ConfigError, Problem
from agent.kernel.caller import Caller
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.telemetry.metrics import Metrics
from agent.workloads.entitlement import Entitlement, Entitlements
from agent.workloads.entry_reload import LOGGED_PROBLEMS, EntryReloader
from agent.workloads.streams import Streams
from attestors.api import Selector
from tests.support.fakes import FakeAttestor, FakeClock, FakeLog, wait_for_loop
from tests.unit.workloads.test_streams import Stub

SELECTOR = Selector("fake", "a")
ATTESTED = Attested(selectors=frozenset({SELECTOR}), reports=())


def entries(*names: str, selector: Selector = SELECTOR) -> EntrySet:
    return EntrySet(
        tuple(
            Entry(
                id=EntryId(name),
                spiffe_id=SpiffeId(TrustDomain("example.org"), f"/{name}"),
                selectors=frozenset({selector}),
            )
            for name in names
        )
    )


class Site:
    """Entries in force, and those that the next load finds: an exception is raised instead."""

    def __init__(self) -> None:
        self.lines, clock = FakeLog(), FakeClock()
        self.found: EntrySet | Exception = entries("one")
        self.while_loading: Callable[[], None] = lambda: None
        attestor = WorkloadAttestor([FakeAttestor()], self.lines.log)
        self.entitlements = Entitlements(attestor, entries("one"), _prove, clock, self.lines.log)
        self.streams = Streams(clock)
        self.reloader = EntryReloader(
            self._load, self.entitlements, self.streams, Metrics(), clock, self.lines.log
        )

    def _load(self) -> LoadedEntries:
        self.while_loading()
        if isinstance(self.found, Exception):
            raise self.found
        return LoadedEntries(entries=self.found)

    def shown_to(self, caller: Caller) -> Entitlement:
        identities = self.entitlements.matches(caller, ATTESTED).identities
        return Entitlement(identities=identities, attestation=ATTESTED)


async def _prove(_caller: Caller) -> None:
    """Every caller sends on its own connection."""


def some_caller() -> Caller:
    return cast("Caller", Stub(process=SimpleNamespace(name="1")))


async def test_only_a_stream_whose_identities_change_wakes() -> None:
    site, caller = Site(), some_caller()
    with site.streams.open_stream(caller, "FetchX509SVID", AuthorityKind.X509) as stream:
        site.streams.show(stream, site.shown_to(caller))
        site.found = EntrySet(
            (*entries("one").entries, *entries("two", selector=Selector("fake", "b")).entries)
        )
        await site.reloader.reload()
        assert not stream.changed.is_set()
        site.found = entries("one", "two")
        await site.reloader.reload()
        assert stream.changed.is_set()
    assert site.lines.of("entries reloaded")[-1]["entries"] == 2


async def test_a_stream_in_its_first_attestation_wakes() -> None:
    """It may have matched the old entries already, and would keep them until its next review."""
    site = Site()
    with site.streams.open_stream(some_caller(), "FetchX509SVID", AuthorityKind.X509) as stream:
        site.found = entries("two")
        await site.reloader.reload()
        assert stream.changed.is_set()


async def test_mistakes_keep_the_last_good_entries_in_force_and_are_logged() -> None:
    site = Site()
    site.found = ConfigError(Problem("a.yaml", n, 1, "wrong") for n in range(LOGGED_PROBLEMS + 5))
    await site.reloader.reload()
    assert [each.id for each in site.entitlements.entries.entries] == ["one"]
    lines = site.lines.of("entries not reloaded")
    assert [line.get("problem") for line in lines[:2]] == ["a.yaml:0:1: wrong", "a.yaml:1:1: wrong"]
    assert lines[-1]["count"] == LOGGED_PROBLEMS + 5
    assert len(site.reloader.status.problems) == LOGGED_PROBLEMS + 5


async def test_a_defect_of_the_loader_is_logged_and_the_next_reload_works() -> None:
    site = Site()
    site.found = ZeroDivisionError("in a template")
    await site.reloader.reload()
    [line] = site.lines.of("internal error")
    assert line["where"] == "reload"
    site.found = entries("two")
    await site.reloader.reload()
    assert [each.id for each in site.entitlements.entries.entries] == ["two"]


async def test_the_entries_are_loaded_off_the_event_loop() -> None:
    site, loop = Site(), asyncio.get_running_loop()
    site.while_loading, site.found = lambda: wait_for_loop(loop), entries("two")
    await site.reloader.reload()
    assert [each.id for each in site.entitlements.entries.entries] == ["two"]
    assert not site.lines.of("internal error")
