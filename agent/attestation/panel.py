"""Run all attestors at once, each with its own time limit, and join their findings."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.attestation.result import Report, _Memory
from agent.errors import PeerGoneError
from agent.telemetry.throttled_log import ThrottledLog
from attestors.api import AttestorError, Findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from agent.kernel.process import ProcessView
    from agent.signals import Signals
    from attestors.api import Attestor


class _Panel:
    """The enabled attestors, asked all at once."""

    def __init__(
        self, attestors: Sequence[Attestor], log: FilteringBoundLogger, signals: Signals
    ) -> None:
        self._attestors = tuple(attestors)
        self._throttled = ThrottledLog(log)
        self._signals = signals
        self._across = {
            each.name for each in attestors if getattr(each, "reuse_across_connections", False)
        }

    async def close(self) -> None:
        """Close each of them."""
        for attestor in self._attestors:
            await attestor.close()

    async def ask_others(self, process: ProcessView, known: _Memory) -> Sequence[Report]:
        """What those say of whom nothing is known that is still good."""
        others = [each for each in self._attestors if each.name not in known.reports]
        if len(others) > 1:
            return await asyncio.gather(*(self._run(each, process) for each in others))
        # Without a task, for those who answer at once.
        return [await self._run(each, process) for each in others]

    def remember(self, memory: _Memory, found: Sequence[Report]) -> _Memory:
        """What is known now, and how long each of it is good."""
        now = asyncio.get_running_loop().time()
        # Not every plug-in says: then it is asked each time.
        spans = {each.name: getattr(each, "reuse_seconds", 0.0) for each in self._attestors}
        fresh = {
            r.attestor: (now + spans[r.attestor], replace(r, remembered=True))
            for r in found
            if r.failure is None and spans[r.attestor] > 0
        }
        return replace(memory, reports={**memory.reports, **fresh})

    def for_other_connections(self, memory: _Memory) -> _Memory:
        """What of it another connection of the same process may know.

        Where something is missing, whoever repairs it connects anew to see whether it helped.
        """
        reports = {
            name: (until, report)
            for name, (until, report) in memory.reports.items()
            if name in self._across and not report.findings.notes
        }
        return memory if len(reports) == len(memory.reports) else replace(memory, reports=reports)

    async def _run(self, attestor: Attestor, process: ProcessView) -> Report:
        began = time.perf_counter()
        findings, failure = await self._ask(attestor, process)
        seconds = time.perf_counter() - began
        self._signals.attested(attestor.name, seconds, failed=failure is not None)
        return Report(attestor=attestor.name, findings=findings, failure=failure, seconds=seconds)

    async def _ask(self, attestor: Attestor, process: ProcessView) -> tuple[Findings, str | None]:
        name = attestor.name
        try:
            async with asyncio.timeout(attestor.timeout):
                findings = await attestor.attest(process)
        except PeerGoneError:
            raise
        except TimeoutError:
            return Findings(), f"did not answer within {attestor.timeout:g} s"
        except AttestorError as error:
            return Findings(), str(error)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and must not end the call
            self._throttled.exception("internal error", name, where="attestor", attestor=name)
            return Findings(), f"broke: {type(error).__name__}"
        return self._own_selectors_only(name, findings)

    def _own_selectors_only(self, name: str, findings: Findings) -> tuple[Findings, str | None]:
        foreign = sorted({found.type for found in findings.selectors if found.type != name})
        if foreign:
            self._throttled.warning(
                "attestor returned foreign selectors", name, attestor=name, types=foreign
            )
            return Findings(), f"claimed selectors of other types: {', '.join(foreign)}"
        return findings, "; ".join(findings.pending) or None
