"""A container engine of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.engine_server import EngineServer


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    async with EngineServer() as server:
        yield server
