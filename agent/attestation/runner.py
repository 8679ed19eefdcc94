"""Call the attestors of a process concurrently, each within its own time limit.

A plug-in is third-party code. Whatever it returns, raises or never ends costs its own selectors and
a rate-limited log line: no other attestor's selectors, no call, and not the daemon.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.attestation.result import Report
from agent.telemetry.throttled_log import ThrottledLog
from attestors.api import AttestorError, Findings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from structlog.typing import FilteringBoundLogger

    from agent.attestation.memory import Memory
    from agent.kernel.process import ProcessView
    from agent.signals import Signals
    from attestors.api import Attestor

CLOSE_SECONDS = 5.0
# The time to end after a cancellation.
GRACE_SECONDS = 0.5
# Each call that ignores its cancellation keeps a task; an attestor with this many is not called.
HUNG_CALLS_MAX = 8
# Notes and reasons go to the log, and to `vouchd explain`.
TEXT_CHARS = 1000
NOTES_MAX = 100
_FOREIGN_TYPES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Enabled:
    """An attestor with its declarations, read once, and its calls that ignored a cancellation."""

    attestor: Attestor
    name: str
    timeout: float
    reuse_seconds: float
    is_reused_across_connections: bool
    hung: set[asyncio.Task[Any]] = field(default_factory=set)

    @classmethod
    def of(cls, attestor: Attestor) -> _Enabled:
        return cls(
            attestor,
            attestor.name,
            attestor.timeout,
            # A plug-in may leave these out.
            getattr(attestor, "reuse_seconds", 0.0),
            getattr(attestor, "reuse_across_connections", False),
        )


class AttestorRunner:
    """Calls the enabled attestors."""

    def __init__(
        self,
        attestors: Iterable[Attestor],
        log: FilteringBoundLogger,
        signals: Signals,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._enabled = tuple(map(_Enabled.of, attestors))
        self._log = log
        self._throttled = ThrottledLog(log)
        self._signals = signals
        self._grace_seconds = grace_seconds

    async def close(self) -> None:
        """Close every attestor, also after one of them failed to close."""
        for enabled in self._enabled:
            for call in enabled.hung:
                call.cancel()
        await close_attestors([enabled.attestor for enabled in self._enabled], self._log)

    async def run(self, process: ProcessView, memory: Memory) -> Sequence[Report]:
        """Call the attestors of which `memory` has no report, and return their reports."""
        wanted = [each for each in self._enabled if each.name not in memory.reports]
        if not wanted:
            return ()
        create_task = asyncio.get_running_loop().create_task
        calls = {
            create_task(self._call(each, process)): each
            for each in wanted
            if len(each.hung) < HUNG_CALLS_MAX
        }
        try:
            await self._wait(calls)
        finally:
            await self._end(calls)
        reports = {each.name: self._report(call, each) for call, each in calls.items()}
        return [reports.get(each.name) or self._failed(each, _hung(each)) for each in wanted]

    def remember(self, memory: Memory, reports: Sequence[Report]) -> Memory:
        """Add the reports that an attestor allows to use again."""
        now = asyncio.get_running_loop().time()
        spans = {each.name: each.reuse_seconds for each in self._enabled}
        fresh = {
            report.attestor: (now + spans[report.attestor], replace(report, remembered=True))
            for report in reports
            if report.failure is None and spans[report.attestor] > 0
        }
        return replace(memory, reports={**memory.reports, **fresh})

    def for_other_connections(self, memory: Memory) -> Memory:
        """Keep the reports that other connections of the same process may use.

        A report with notes is not among them: after the operator removed the cause, a new
        connection shows the effect at once.
        """
        shared = {each.name for each in self._enabled if each.is_reused_across_connections}
        reports = {
            name: (expires_at, report)
            for name, (expires_at, report) in memory.reports.items()
            if name in shared and not report.findings.notes
        }
        return memory if len(reports) == len(memory.reports) else replace(memory, reports=reports)

    async def _call(self, enabled: _Enabled, process: ProcessView) -> Report:
        began = time.perf_counter()
        findings, failure = await self._attest(enabled, process)
        seconds = time.perf_counter() - began
        self._signals.attested(enabled.name, seconds, failed=failure is not None)
        return Report(attestor=enabled.name, findings=findings, failure=failure, seconds=seconds)

    def _report(self, call: asyncio.Task[Report], enabled: _Enabled) -> Report:
        if not call.done():
            return self._failed(enabled, _hung(enabled))
        if call.cancelled():
            return self._failed(enabled, f"did not answer within {enabled.timeout:g} s")
        if error := call.exception():  # such as that of an AttestorError without a text
            return self._failed(enabled, f"internal error: {type(error).__name__}")
        return call.result()

    def _failed(self, enabled: _Enabled, reason: str) -> Report:
        self._signals.attested(enabled.name, enabled.timeout, failed=True)
        return Report(attestor=enabled.name, failure=reason, seconds=enabled.timeout)

    async def _attest(self, enabled: _Enabled, process: ProcessView) -> tuple[Findings, str | None]:
        try:
            return self._checked(enabled.name, await enabled.attestor.attest(process))
        except TimeoutError:
            failure = "a request of it timed out"
        except ProcessLookupError:
            failure = "the process exited"
        except AttestorError as error:
            failure = str(error)[:TEXT_CHARS]
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            failure = "internal error: CancelledError"
        except (Exception, SystemExit, BaseExceptionGroup) as error:  # noqa: BLE001 - see the module
            failure = f"internal error: {type(error).__name__}"
            name = enabled.name
            self._throttled.exception("internal error", name, where="attestor", attestor=name)
        return Findings(), failure

    def _checked(self, name: str, findings: Findings) -> tuple[Findings, str | None]:
        """Refuse findings that are none, or of another attestor's type."""
        if not isinstance(findings, Findings):
            raise AttestorError(f"returned {type(findings).__name__} instead of Findings")
        foreign = sorted({found.type for found in findings.selectors if found.type != name})
        if foreign:
            types = foreign[:_FOREIGN_TYPES_SHOWN]
            self._throttled.warning(
                "attestor returned foreign selectors", name, attestor=name, types=types
            )
            raise AttestorError(f"returned selectors of other types: {', '.join(types)}")
        failure = "; ".join(findings.pending)[:TEXT_CHARS] or None
        if findings.notes:
            notes = tuple(note[:TEXT_CHARS] for note in findings.notes[:NOTES_MAX])
            findings = replace(findings, notes=notes)
        return findings, failure

    async def _wait(self, calls: dict[asyncio.Task[Report], _Enabled]) -> None:
        """Wait for each call until its attestor's time limit, and cancel it then."""
        now = asyncio.get_running_loop().time
        began = now()
        for call, enabled in sorted(calls.items(), key=lambda each: each[1].timeout):
            if not call.done():
                left = began + enabled.timeout - now()
                await asyncio.wait((call,), timeout=max(0.0, left))
            if not call.done():
                call.cancel()

    async def _end(self, calls: dict[asyncio.Task[Report], _Enabled]) -> None:
        """Cancel the calls that have not ended, and count those that ignore it."""
        running = [call for call in calls if not call.done()]
        if not running:
            return
        for call in running:
            if not call.cancelling():
                call.cancel()
        try:
            await asyncio.wait(running, timeout=self._grace_seconds)
        finally:
            for call in running:
                if not call.done():
                    calls[call].hung.add(call)
                    call.add_done_callback(calls[call].hung.discard)


def _hung(enabled: _Enabled) -> str:
    return f"did not end after its time limit of {enabled.timeout:g} s"


async def close_attestors(
    attestors: Sequence[Attestor], log: FilteringBoundLogger, seconds: float = CLOSE_SECONDS
) -> None:
    """Close attestors. One that raises, or takes longer than `seconds`, costs a log line."""
    if not attestors:
        return
    create_task = asyncio.get_running_loop().create_task
    closing = {create_task(_close(each, log)): each.name for each in attestors}
    _ended, running = await asyncio.wait(closing, timeout=seconds)
    for task in running:
        task.cancel()
        log.warning(
            "attestor not closed",
            attestor=closing[task],
            reason=f"close() did not end within {seconds:g} s",
        )
    if running:
        await asyncio.wait(running, timeout=GRACE_SECONDS)


async def _close(attestor: Attestor, log: FilteringBoundLogger) -> None:
    try:
        await attestor.close()
    except (Exception, SystemExit, BaseExceptionGroup):
        log.exception("internal error", where="attestor", attestor=attestor.name)
