"""Descriptors of processes that call again soon: `/proc/PID`, its files, the pin of the program.

To open and close them takes as long as to read them. They are kept for a bounded number of callers,
and only for a caller whose calls follow each other: the review of an idle stream keeps nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.kernel.caller import Caller
    from agent.kernel.fingerprint import ProgramPin
    from agent.kernel.process import ProcessView

# Callers whose descriptors are kept, and the descriptors of each.
KEPT_CALLERS = 128
DESCRIPTORS_OF_EACH = 4


class OpenProcess:
    """The view of a caller's process and the pin of its program, which it owns."""

    __slots__ = ("pin", "view")

    def __init__(self, caller: Caller, pin: Callable[[ProcessView], ProgramPin]) -> None:
        self.view = caller.open_proc()
        try:
            self.pin = pin(self.view)
        except BaseException:
            self.view.close()
            raise

    def close(self) -> None:
        """Close all descriptors."""
        self.pin.close()
        self.view.close()


class KeptProcesses:
    """The processes of the callers that called last, each in its `Caller.kept`.

    An attestation takes one and gives it back, so that nothing closes it meanwhile.
    """

    def __init__(self, pin: Callable[[ProcessView], ProgramPin], most: int = KEPT_CALLERS) -> None:
        self._pin = pin
        self._most = most
        self._callers: OrderedDict[Caller, None] = OrderedDict()  # the latest last

    def close(self) -> None:
        """Close all descriptors."""
        while self._callers:
            self._callers.popitem()[0].drop_kept()

    def take(self, caller: Caller) -> OpenProcess:
        """Return the caller's process, kept or opened now.

        Raises:
            PeerGoneError: the process is gone.
            AttestationError: the agent is out of descriptors, or may not read `/proc`.
        """
        if caller.kept:
            process = cast("OpenProcess", caller.kept.pop())
            if not process.pin.changed():
                return process
            process.close()  # it has executed another program
        return OpenProcess(caller, self._pin)

    def give_back(self, caller: Caller, process: OpenProcess, *, keep: bool) -> None:
        """Keep the process, or close it."""
        # Another attestation may have given one back meanwhile; a closed caller closes no more.
        if not keep or not process.pin.holds or caller.kept or caller.process.is_closed:
            process.close()
            return
        caller.kept.append(process)
        self._callers[caller] = None
        self._callers.move_to_end(caller)
        if len(self._callers) > self._most:
            self._callers.popitem(last=False)[0].drop_kept()
