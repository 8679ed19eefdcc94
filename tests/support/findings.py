"""An attestor under test, and its findings."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.agent import SAFETY_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from attestors.api import Attestor, Findings

A = TypeVar("A", bound="Attestor")


@asynccontextmanager
async def closing(attestor: A) -> AsyncIterator[A]:
    """Close the attestor at the end of the block."""
    try:
        yield attestor
    finally:
        await attestor.close()


def values(findings: Findings) -> set[str]:
    """Return the values of the selectors."""
    return {selector.value for selector in findings.selectors}


async def until(readiness: Callable[[], Any]) -> None:
    """Run the event loop until this holds."""
    async with asyncio.timeout(SAFETY_SECONDS):
        while not readiness():
            await asyncio.sleep(0.001)
