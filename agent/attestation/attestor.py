"""Attest a caller: call the attestors, and compare the process before and after.

The order of the steps is the security argument:

1. open the process's `/proc` directory while its pidfd is alive;
2. pin its address space, which the process loses when it executes a program;
3. read its fingerprint: credentials, executable, cgroup, namespaces;
4. call the attestors, each within its own time limit;
5. run the block of `attest`, in which the agent uses the findings;
6. read the fingerprint again, check the pin, and poll the pidfd last. If anything changed, the
   findings may describe two different programs: the attestation fails.

Findings are remembered while the fingerprint of the connection's process stays the same, for the
time that each attestor allows, and for other connections of the process if the attestor allows that
too. The inode of the pidfd in pidfs identifies the process. If all findings are remembered and the
process is asked nothing in step 5, no time passes in between, and step 6 skips the second
fingerprint; it still checks the pin, which another process can keep alive. The descriptors of steps
1 to 3 are kept for a caller that calls again soon (agent.attestation.kept), unless it has executed
a program meanwhile; one pin for each open stream would cost too much.

A failed attestor is not an answer. Its selectors are missing, which can only remove matches (an
entry matches if all its selectors are present), and the result names the failure, so that the agent
answers "try again" instead of "no identity" if nothing matched.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from agent.attestation.kept import KeptProcesses, OpenProcess
from agent.attestation.memory import KnownCaller, KnownProcess, Memory
from agent.attestation.result import Attested, Report, join
from agent.attestation.runner import AttestorRunner
from agent.errors import PeerError, PeerGoneError
from agent.kernel.caller import Proof
from agent.kernel.fingerprint import (
    ProgramPin,
    check_credentials,
    executable_name,
    own_user_namespace,
    read_fingerprint,
)
from agent.signals import NO_SIGNALS, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from structlog.typing import FilteringBoundLogger

    from agent.kernel.caller import Caller
    from agent.kernel.fingerprint import Fingerprint
    from agent.kernel.process import ProcessView
    from agent.signals import Signals
    from attestors.api import Attestor

# Processes whose findings are kept for their next connection.
KNOWN_PROCESSES = 1024
# Callers with less than this between two attestations keep their descriptors for the next one; the
# reviews of an idle stream are further apart.
OFTEN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The functions that read a process's state from the kernel."""

    fingerprint: Callable[[ProcessView], Fingerprint] = read_fingerprint
    pin: Callable[[ProcessView], ProgramPin] = ProgramPin
    executable: Callable[[ProcessView], str | None] = executable_name
    own_user_namespace: Callable[[], str] = own_user_namespace


class WorkloadAttestor:
    """Attests callers with the enabled attestors, which it owns: `close` it."""

    def __init__(
        self,
        attestors: Sequence[Attestor],
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
        evidence: Evidence = Evidence(),
    ) -> None:
        self._runner = AttestorRunner(attestors, log, signals)
        self._signals = signals
        self._evidence = evidence
        self._known: WeakKeyDictionary[Caller, KnownCaller] = WeakKeyDictionary()
        self._kept = KeptProcesses(evidence.pin)
        self._processes: LRUCache[str, KnownProcess] = LRUCache(KNOWN_PROCESSES)

    def attest(self, caller: Caller) -> Attestation:
        """Attest the caller's process; the findings hold from the begin of the block to its end.

        Raises, at the begin or at the end of the block:
            PeerGoneError: the process is gone.
            PeerError: the process changed its program, its credentials, its cgroup or a namespace.
        """
        known = self._known.get(caller)
        if known is None:
            known = self._known[caller] = KnownCaller(self._process(caller))
        return Attestation(caller, known, self._runner, self._evidence, self._signals, self._kept)

    def latest(self, caller: Caller) -> Attested | None:
        """Return the caller's latest result; None if the process changed during it."""
        known = self._known.get(caller)
        return None if known is None else known.latest

    async def close(self) -> None:
        """Close every attestor, and the descriptors that are kept."""
        self._kept.close()
        await self._runner.close()

    def _process(self, caller: Caller) -> KnownProcess:
        # Connections share findings only if the kernel pinned the process at connect. Without a
        # pidfs inode, and for a process read by PID (agent.kernel.inspect), it did not.
        if caller.process.inode is None or caller.proof is not Proof.PEERPIDFD:
            return KnownProcess()
        name = caller.process.name
        known = self._processes.get(name)
        if known is None:
            known = self._processes[name] = KnownProcess()
        return known


class Attestation:
    """One attestation of a caller, a context manager around the use of its result."""

    __slots__ = (
        "_asks_process",
        "_before",
        "_caller",
        "_calls_often",
        "_evidence",
        "_kept",
        "_known",
        "_memory",
        "_open",
        "_pin",
        "_process",
        "_reports",
        "_runner",
        "_seconds",
        "_signals",
    )

    _open: OpenProcess
    _process: ProcessView
    _pin: ProgramPin
    _before: Fingerprint
    _memory: Memory
    _reports: Sequence[Report]
    _seconds: float

    def __init__(
        self,
        caller: Caller,
        known: KnownCaller,
        runner: AttestorRunner,
        evidence: Evidence,
        signals: Signals,
        kept: KeptProcesses,
    ) -> None:
        self._asks_process = False
        self._kept = kept
        self._caller = caller
        self._known = known
        self._runner = runner
        self._evidence = evidence
        self._signals = signals

    def note_question(self) -> None:
        """Note that the block asks the process: the fingerprint is read again in any case."""
        self._asks_process = True

    async def __aenter__(self) -> Attested:
        began = time.perf_counter()
        known = self._known
        known.latest = None
        self._calls_often = began - known.attested_at < OFTEN_SECONDS
        known.attested_at = began
        self._open = self._kept.take(self._caller)
        self._process, self._pin = self._open.view, self._open.pin
        try:
            self._before = self._evidence.fingerprint(self._process)
            self._memory = self._recall()
            self._seconds = time.perf_counter() - began
            self._reports = await self._runner.run(self._process, self._memory)
            known.latest = attested = self._join()
        except BaseException:
            self._open.close()
            raise
        return attested

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        began = time.perf_counter()
        if error is not None:
            self._open.close()
            return
        try:
            self._check_unchanged()
            self._check_alive()
        except BaseException:
            self._open.close()
            raise
        self._kept.give_back(self._caller, self._open, keep=self._calls_often)
        self._signals.timed(Stage.EVIDENCE, self._seconds + time.perf_counter() - began)
        if self._reports:
            self._known.memory = memory = self._runner.remember(self._memory, self._reports)
            self._known.process.memory = self._runner.for_other_connections(memory)

    def _recall(self) -> Memory:
        """Return the findings about this program that are still valid.

        Raises:
            PeerError: the credentials differ from those at connect.
        """
        known, now = self._known, self._before
        if known.checked_fingerprint != now:
            check_credentials(now, self._caller.credentials)
            known.checked_fingerprint = now
        memory = known.memory or self._recall_from_other_connections()
        if memory is None or memory.fingerprint != now:
            memory = Memory(now, self._evidence.executable(self._process))
        else:
            memory = memory.at(asyncio.get_running_loop().time())
        known.memory = memory
        return memory

    def _recall_from_other_connections(self) -> Memory | None:
        memory = self._known.process.memory
        # The executable may have another path by now, with the same fingerprint.
        if memory is None or memory.executable == self._evidence.executable(self._process):
            return memory
        return None

    def _join(self) -> Attested:
        attested = self._memory.joined
        if self._reports:
            attested = join([*attested.reports, *self._reports], self._memory.executable)
        if attested.failures:
            # The exit of a process is no failure of an attestor.
            self._check_alive()
        own = self._evidence.own_user_namespace()
        if not self._pin.holds or self._before.user_namespace != own:
            attested = attested.without_program()
        return attested

    def _check_unchanged(self) -> None:
        # Otherwise no time has passed since the first fingerprint.
        reads_again = self._reports or self._asks_process
        again = self._evidence.fingerprint(self._process) if reads_again else self._before
        if again != self._before or self._pin.changed():
            self._known.latest = None
            raise PeerError("the process changed its program or user while it was attested")

    def _check_alive(self) -> None:
        if not self._caller.process.is_alive():
            raise PeerGoneError("the process exited while it was attested")
