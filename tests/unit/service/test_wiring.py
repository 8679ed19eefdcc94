"""The composition root: loading the entries at the start does not block the event loop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config.settings import Settings
from agent.entries.entry import EntrySet
from agent.entries.schema import LoadedEntries
from agent.service import wiring
from agent.service.sd_notify import ServiceManager
from tests.support.fakes import FakeLog, wait_for_loop
from tests.support.settings import settings


async def test_the_first_load_of_the_entries_is_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, lines = asyncio.get_running_loop(), FakeLog()

    def load(_settings: Settings, _clock: Clock) -> LoadedEntries:
        wait_for_loop(loop)
        return LoadedEntries(entries=EntrySet(()))

    monkeypatch.setattr(wiring, "load_configured_entries", load)
    wanted = settings(data_dir=str(tmp_path / "data"))
    host = wiring.Host(
        log=lines.log,
        audit=lines.write_audit,
        manager=ServiceManager(),
        ready=lambda _address: None,
        reread=lambda: wanted,
        relog=lambda _changed: None,
    )
    async with AsyncExitStack() as stack:
        parts = await wiring.build(wanted, host, stack)
        assert parts.reloader.status.entries == 0
