"""The host's clock: long waits end together."""

from __future__ import annotations

import asyncio

import pytest

from agent.clock import SystemClock


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The lengths of the waits, which take no time."""
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return asked


async def test_long_waits_that_begin_apart_end_in_one_moment(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    begins = [1000.01, 1000.06, 1000.12]
    for began in begins:
        monkeypatch.setattr(loop, "time", lambda began=began: began)
        await SystemClock().sleep(2.0)
    monkeypatch.undo()
    ends = {round(began + waited, 6) for began, waited in zip(begins, waits, strict=True)}
    assert ends == {1002.0}
    assert all(2.0 - 0.125 <= waited <= 2.0 for waited in waits)


async def test_short_wait_has_its_full_length(waits: list[float]) -> None:
    await SystemClock().sleep(0.3)
    assert waits == [0.3]
