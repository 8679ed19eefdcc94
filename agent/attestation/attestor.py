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
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from agent.attestation.panel import _Panel
from agent.attestation.result import (
    Attested,
    Report,
    _join,
    _Known,
    _KnownProcess,
    _Memory,
    _without_program,
)
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
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from structlog.typing import FilteringBoundLogger

    from agent.kernel.caller import Caller
    from agent.kernel.fingerprint import Fingerprint
    from agent.kernel.process import ProcessView
    from agent.signals import Signals
    from attestors.api import Attestor

# Of how many processes it is known what was found out, though they are not connected any more.
KNOWN_PROCESSES = 1024


class WorkloadAttestor:
    """Runs the enabled attestors for a caller."""

    def __init__(
        self,
        attestors: Sequence[Attestor],
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
    ) -> None:
        self._panel = _Panel(attestors, log, signals)
        self._signals = signals
        self._known: WeakKeyDictionary[Caller, _Known] = WeakKeyDictionary()
        self._processes: LRUCache[str, _KnownProcess] = LRUCache(KNOWN_PROCESSES)

    def attest(self, caller: Caller) -> AbstractAsyncContextManager[Attested]:
        """What is true of the caller's process, from before a block to after it.

        Raises, at the beginning or at the end of the block:
            PeerGoneError: the process is gone.
            PeerError: it changed its program or its credentials.
        """
        known = self._known.get(caller)
        if known is None:
            known = self._known[caller] = _Known(self._process(caller))
        return _Attestation(caller, known, self._panel, self._signals)

    def _process(self, caller: Caller) -> _KnownProcess:
        # Findings are shared between connections only if the kernel pinned the process at connect;
        # without a pidfs inode, or for a process read by PID (agent.kernel.inspect), it did not.
        if caller.process.inode is None or caller.proof is not Proof.PEERPIDFD:
            return _KnownProcess()
        name = caller.process.name
        known = self._processes.get(name)
        if known is None:
            known = self._processes[name] = _KnownProcess()
        return known

    def latest(self, caller: Caller) -> Attested | None:
        """What was found out when this caller was last attested; None if that did not hold."""
        known = self._known.get(caller)
        return None if known is None else known.latest

    async def close(self) -> None:
        """Close every attestor."""
        await self._panel.close()


class _Attestation:
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

    async def __aenter__(self) -> Attested:
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

    def _join(self) -> Attested:
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
