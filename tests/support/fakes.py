"""Fake clock, attestor and log, under the control of a test."""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import json
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from pydantic import BaseModel

from agent.entries.entry import EntryId
from agent.entries.identity import Identity
from agent.gate.admission import Admission
from agent.limits.fair_queue import FairQueue
from agent.limits.quotas import Limits, Quotas
from agent.signals import NO_SIGNALS, Signals
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.telemetry.audit import Audit, AuditEvent
from agent.telemetry.plain import to_plain
from attestors.api import AttestorContext, Findings, Options, Selector
from tests.support import secrecy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from attestors.api import WorkloadRef

START = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.UTC)


def identity(name: str = "a", **fields: Any) -> Identity:
    """Return an identity of example.org with the entry ID `name`."""
    path = SpiffeId(TrustDomain("example.org"), f"/{name}")
    return Identity(**{"entry_id": EntryId(name), "spiffe_id": path, **fields})


def admission(
    *,
    connections: int = 4000,
    per_user: int = 8000,
    rate: float = 1_000_000,
    signals: Signals = NO_SIGNALS,
    lines: FakeLog | None = None,
    buffer_bytes: int = 1 << 30,
    **options: Any,
) -> Admission:
    """Return an Admission with large default quotas."""
    fair_queue = FairQueue(asyncio.get_running_loop(), rate, signals)
    admits = quotas(connections=connections, per_user=per_user, buffer_bytes=buffer_bytes)
    note = (lines or FakeLog()).audit().refused
    return Admission(admits, fair_queue, note, signals=signals, **options)


def quotas(
    *,
    connections: int = 10_000,
    streams: int = 10_000,
    attestations: int = 10_000,
    per_user: int = 20_000,
    buffer_bytes: int = 1 << 30,
) -> Quotas:
    """Return Quotas with large default limits."""
    limits = Limits(
        connections=connections,
        connections_per_user=per_user,
        streams=streams,
        streams_per_user=per_user,
        attestations=attestations,
        attestations_per_user=per_user,
        buffer_bytes=buffer_bytes,
        buffer_bytes_per_user=buffer_bytes,
    )
    return Quotas(limits)


class FakeClock:
    """A Clock that the test advances."""

    def __init__(self, now: dt.datetime = START) -> None:
        self._now = now
        self._sleepers: list[tuple[dt.datetime, int, asyncio.Future[None]]] = []
        self._order = count()

    def now(self) -> dt.datetime:
        return self._now

    async def sleep(self, seconds: float) -> None:
        done = asyncio.get_running_loop().create_future()
        wake = self._now + dt.timedelta(seconds=seconds)
        heapq.heappush(self._sleepers, (wake, next(self._order), done))
        await done

    def set(self, now: dt.datetime) -> None:
        """Set the time without waking sleepers, as after a suspend of the host."""
        self._now = now

    async def advance(self, duration: dt.timedelta) -> None:
        """Advance the time and wake each sleeper at its due time."""
        end = self._now + duration
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            wake, _, done = heapq.heappop(self._sleepers)
            self._now = max(self._now, wake)
            if not done.done():
                done.set_result(None)
            await settle()
        self._now = end


async def settle() -> None:
    """Run the event loop until its ready callbacks have run."""
    for _ in range(20):
        await asyncio.sleep(0)


def wait_for_loop(loop: asyncio.AbstractEventLoop, seconds: float = 10.0) -> None:
    """Block until the event loop runs a callback, as file work does that must be in a thread.

    Raises:
        AssertionError: the loop ran none in time: this call itself blocks it.
    """
    turned = threading.Event()
    loop.call_soon_threadsafe(turned.set)
    assert turned.wait(seconds), "file work blocks the event loop"


class FakeAttestor:
    """An attestor with fixed selector values, or a coroutine function that returns findings."""

    name: ClassVar[str] = "fake"
    Options: ClassVar[type[BaseModel]] = Options
    timeout: ClassVar[float] = 5.0
    reuse_seconds: ClassVar[float] = 0.0
    reuse_across_connections: ClassVar[bool] = False

    def __init__(
        self,
        values: frozenset[str] | Callable[[WorkloadRef], Awaitable[Findings]] = frozenset(),
        _context: AttestorContext | None = None,
    ) -> None:
        self._values = values
        self.closed = False

    async def attest(self, workload: WorkloadRef) -> Findings:
        if callable(self._values):
            return await self._values(workload)
        return Findings(frozenset(Selector(self.name, value) for value in self._values))

    async def close(self) -> None:
        self.closed = True


class FakeLog:
    """A log that records its lines as dicts of fields, `event` included."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.log: FilteringBoundLogger = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[structlog.processors.add_log_level, self._keep],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )

    def audit(self, boot_id: str = "boot") -> Audit:
        """Return an audit trail on this log, for callers without an attestation result."""
        return Audit(self.write_audit, boot_id, lambda _caller: None, time.monotonic)

    def write_audit(self, event: AuditEvent) -> None:
        """Record an event of the audit trail."""
        self.log.info(event.event, **event.fields)

    def _keep(self, _logger: object, _method: str, line: Any) -> Any:
        self.lines.append(dict(line))
        written = structlog.processors.format_exc_info(_logger, _method, dict(line))
        secrecy.record(json.dumps(to_plain(written)))
        raise structlog.DropEvent

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of an event."""
        return [line for line in self.lines if line["event"] == event]
