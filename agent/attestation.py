"""From a caller to its selectors: all attestors at once, and the evidence checked on both sides.

The order is what makes it safe:

1. open the process's `/proc` directory while its pidfd is alive;
2. pin its address space, which a process loses at exec;
3. take a fingerprint: credentials, executable, cgroup, namespaces, as they are now;
4. run the attestors, each within its own time;
5. let our caller do what rests on the findings: the block of `attest`;
6. take the fingerprint again, look at the pin, and poll the pidfd last. If anything changed, what
   was found in between may be true of two different programs, and nothing of it is used.

While the fingerprint of a connection's process stays the same, an attestor that allows it is not
asked again, nor on another connection of that process if it allows that too: the process is told by
its inode in pidfs, which no other ever has. If none is asked, nothing is found in between, and one
fingerprint does; the pin is looked at all the same. The pin is for one attestation: the same
executable is the same program, whenever it was started, and a descriptor held for each open stream
would be dear.

A failed attestor is not an answer. Its selectors are missing, which can only remove matches
(entries match on subsets), and the result says so, so that "nothing matched" is not mistaken for
"no identity".
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from agent.config import Proof
from agent.errors import PeerError, PeerGoneError
from agent.fingerprint import (
    ProgramPin,
    check_credentials,
    executable_name,
    own_user_namespace,
    read_fingerprint,
)
from agent.limits import Recent
from agent.signals import UNHEARD, Stage
from attestors.api import AttestorError, Findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from structlog.typing import FilteringBoundLogger

    from agent.fingerprint import Fingerprint
    from agent.peer import Caller, ProcessView
    from agent.signals import Signals
    from attestors.api import Attestor, Selector


# Of how many processes it is known what was found out, though they are not connected any more.
KNOWN_PROCESSES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one attestor said, and how long it took to say it. `failure` tells why it said less."""

    attestor: str
    findings: Findings = field(default_factory=Findings)
    failure: str | None = None
    seconds: float = 0.0
    remembered: bool = False
    """Said before, of this same process, and still good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What is known of a caller."""

    selectors: frozenset[Selector]
    program: frozenset[Selector] = frozenset()
    """Those that hold because of what program runs."""
    reports: tuple[Report, ...] = ()
    notes: tuple[str, ...] = ()
    """Why selectors are missing for good."""
    executable: str | None = None
    """What the kernel calls the program it runs; see executable_name."""
    failures: Mapping[str, str] = field(init=False)
    """Why attestors failed, by their names."""

    def __post_init__(self) -> None:
        failures = {r.attestor: r.failure for r in self.reports if r.failure is not None}
        object.__setattr__(self, "failures", failures)


@dataclass(frozen=True, slots=True)
class _Memory:
    """What attestors found while the fingerprint was this one, and how long each result is good."""

    fingerprint: Fingerprint
    executable: str | None
    reports: Mapping[str, tuple[float, Report]] = field(default_factory=dict)
    joined: Attestation = field(init=False)
    good_until: float = field(init=False)

    def __post_init__(self) -> None:
        reports = [report for _until, report in self.reports.values()]
        good_until = min((until for until, _report in self.reports.values()), default=math.inf)
        object.__setattr__(self, "joined", _join(reports, self.executable))
        object.__setattr__(self, "good_until", good_until)

    def at(self, now: float) -> _Memory:
        """What of it is still good."""
        if now < self.good_until:
            return self
        good = {name: (until, r) for name, (until, r) in self.reports.items() if now < until}
        return _Memory(self.fingerprint, self.executable, good)


@dataclass(slots=True)
class _KnownProcess:
    """What is kept of a process, for its next connections."""

    memory: _Memory | None = None


@dataclass(slots=True)
class _Known:
    """What is kept of one caller."""

    process: _KnownProcess
    memory: _Memory | None = None
    checked: Fingerprint | None = None
    """What it looked like when its credentials were those at connect."""
    latest: Attestation | None = None
    """None if the last look at it did not hold."""


class WorkloadAttestor:
    """Runs the enabled attestors for a caller."""

    def __init__(
        self,
        attestors: Sequence[Attestor],
        log: FilteringBoundLogger,
        signals: Signals = UNHEARD,
    ) -> None:
        self._panel = _Panel(attestors, log, signals)
        self._signals = signals
        self._known: WeakKeyDictionary[Caller, _Known] = WeakKeyDictionary()
        self._processes: Recent[str, _KnownProcess] = Recent(_KnownProcess, KNOWN_PROCESSES)

    def attest(self, caller: Caller) -> AbstractAsyncContextManager[Attestation]:
        """What is true of the caller's process, from before a block to after it.

        Raises, at the beginning or at the end of the block:
            PeerGoneError: the process is gone.
            PeerError: it changed its program or its credentials.
        """
        known = self._known.get(caller)
        if known is None:
            known = self._known[caller] = _Known(self._process(caller))
        return _Attesting(caller, known, self._panel, self._signals)

    def _process(self, caller: Caller) -> _KnownProcess:
        # Without an inode there is no name but the connection's. Nor is anything taken from one who
        # was only looked at (agent.observation), or whom the kernel did not pin when it connected.
        if caller.process.inode is None or caller.proof is not Proof.PEERPIDFD:
            return _KnownProcess()
        return self._processes.of(caller.process.name)

    def latest(self, caller: Caller) -> Attestation | None:
        """What was found out when this caller was last attested; None if that did not hold."""
        known = self._known.get(caller)
        return None if known is None else known.latest

    async def close(self) -> None:
        """Close every attestor."""
        await self._panel.close()


class _Attesting:
    """One attestation of a caller, during the block that rests on it.

    It owns the view of the process and the pin of its program meanwhile.
    """

    __slots__ = (
        "_before",
        "_caller",
        "_found",
        "_known",
        "_memory",
        "_panel",
        "_process",
        "_program",
        "_seconds",
        "_signals",
    )

    _process: ProcessView
    _program: ProgramPin
    _before: Fingerprint
    _memory: _Memory
    _found: Sequence[Report]
    _seconds: float

    def __init__(self, caller: Caller, known: _Known, panel: _Panel, signals: Signals) -> None:
        self._caller = caller
        self._known = known
        self._panel = panel
        self._signals = signals

    async def __aenter__(self) -> Attestation:
        began = time.perf_counter()
        self._known.latest = None
        self._open()
        try:
            self._before = read_fingerprint(self._process)
            self._memory = self._recall()
            self._seconds = time.perf_counter() - began
            self._found = await self._panel.ask_others(self._process, self._memory)
            self._known.latest = attestation = self._join()
        except BaseException:
            self._close()
            raise
        return attestation

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        began = time.perf_counter()
        try:
            if error is not None:
                return
            self._check_unchanged()
        finally:
            self._close()
        if not self._caller.process.is_alive():
            raise PeerGoneError("the process exited while it was attested")
        self._signals.timed(Stage.EVIDENCE, self._seconds + time.perf_counter() - began)
        if self._found:
            self._known.memory = memory = self._panel.remember(self._memory, self._found)
            self._known.process.memory = self._panel.for_other_connections(memory)

    def _open(self) -> None:
        self._process = self._caller.open_proc()
        try:
            self._program = ProgramPin(self._process)
        except BaseException:
            self._process.close()
            raise

    def _close(self) -> None:
        self._program.close()
        self._process.close()

    def _recall(self) -> _Memory:
        """What is still good of what was found out about this same program.

        Raises:
            PeerError: the process is not any more who connected.
        """
        known, now = self._known, self._before
        if known.checked != now:
            check_credentials(now, self._caller.credentials)
            known.checked = now
        memory = known.memory or self._recall_from_elsewhere()
        if memory is None or memory.fingerprint != now:
            memory = _Memory(now, executable_name(self._process))
        else:
            memory = memory.at(asyncio.get_running_loop().time())
        known.memory = memory
        return memory

    def _recall_from_elsewhere(self) -> _Memory | None:
        memory = self._known.process.memory
        # A name says nothing of the program, and may be another by now.
        if memory is None or memory.executable == executable_name(self._process):
            return memory
        return None

    def _join(self) -> Attestation:
        attestation = self._memory.joined
        if self._found:
            attestation = _join([*attestation.reports, *self._found], self._memory.executable)
        if not self._program.holds or self._before.user_namespace != own_user_namespace():
            attestation = _without_program(attestation)
        return attestation

    def _check_unchanged(self) -> None:
        # What was found is of one moment only if nothing changed meanwhile. If nobody was asked,
        # the fingerprint is that moment.
        again = read_fingerprint(self._process) if self._found else self._before
        if again != self._before or self._program.changed():
            self._known.latest = None
            raise PeerError("the process changed its program or user while it was attested")


class _Panel:
    """The enabled attestors, asked all at once."""

    def __init__(
        self, attestors: Sequence[Attestor], log: FilteringBoundLogger, signals: Signals
    ) -> None:
        self._attestors = tuple(attestors)
        self._log = log
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
            self._log.exception("attestor broke", attestor=name)
            return Findings(), f"broke: {type(error).__name__}"
        return self._own_selectors_only(name, findings)

    def _own_selectors_only(self, name: str, findings: Findings) -> tuple[Findings, str | None]:
        foreign = sorted({found.type for found in findings.selectors if found.type != name})
        if foreign:
            self._log.warning("attestor claimed foreign selectors", attestor=name, types=foreign)
            return Findings(), f"claimed selectors of other types: {', '.join(foreign)}"
        return findings, "; ".join(findings.pending) or None


def _join(reports: Sequence[Report], executable: str | None) -> Attestation:
    return Attestation(
        selectors=_union([report.findings.selectors for report in reports]),
        program=_union([report.findings.program for report in reports]),
        reports=tuple(reports),
        notes=tuple(note for report in reports for note in report.findings.notes),
        executable=executable,
    )


def _union(sets: Sequence[frozenset[Selector]]) -> frozenset[Selector]:
    # One alone is kept as it is: what is looked up by it is found without comparing it.
    return sets[0] if len(sets) == 1 else frozenset().union(*sets)


def _without_program(attestation: Attestation) -> Attestation:
    """Who rules a process's user namespace can make it look like any program (prctl(2), ptrace(2)).

    And one whom the agent may not look into could be another program a moment later.
    """
    if not attestation.program:
        return attestation
    note = (
        "no selectors of its program: the process is in a user namespace of its own, or the agent "
        "may not look into it"
    )
    return replace(
        attestation,
        selectors=attestation.selectors - attestation.program,
        program=frozenset(),
        notes=(*attestation.notes, note),
    )
