"""An agent that is killed, or loses its disk, at a chosen moment of a state write.

    python -m tests.support.dying N run -c FILE
    python -m tests.support.dying N:MOUNTPOINT run -c FILE

N counts the moments just before and just after each fsync and each rename, from 1. With a mount
point, the file system there stops at that moment, as after a power cut.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from agent.cli.main import main
from tests.support.faults import cut_power

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

_moments = count(1)
_last, _, _disk = sys.argv.pop(1).partition(":")


def _dying(call: Callable[P, T]) -> Callable[P, T]:
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        _pass()
        result = call(*args, **kwargs)
        _pass()
        return result

    return wrapper


def _pass() -> None:
    if next(_moments) == int(_last):
        if _disk:
            cut_power(_disk)
        os.kill(os.getpid(), signal.SIGKILL)


os.fsync = _dying(os.fsync)
os.rename = _dying(os.rename)
main()
