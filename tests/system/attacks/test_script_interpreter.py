"""A script claims to be another script.

The interpreter runs; the script's name is only in the command line, which is memory that the
process can write. An agent that looks for scripts behind interpreters believes the claim. vouchd
reports the executable
alone: the interpreter.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import pids
from tests.support.targets import TRUSTED_ID, VICTIM, Target, connect, fetch_ids, found_by

# proc_pid_stat(5): the field with the start of the arguments.
ARG_START = 48

pytestmark = pytest.mark.system


def test_script_interpreter(target: Target) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(VICTIM)
        claim_to_run(str(target.trusted))
        with connect(target.socket) as sock:
            report(fetch_ids(sock))

    target.record_result(succeeded=TRUSTED_ID in found_by(attacker))


def claim_to_run(script: str) -> None:
    """Overwrite the first argument of this process."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start = int(fields[ARG_START - 3])
    name = ctypes.string_at(start)
    claim = os.fsencode(script) + b"\0"
    assert len(Path("/proc/self/cmdline").read_bytes()) > len(name) + len(claim), "no room for it"
    ctypes.memmove(start + len(name) + 1, claim, len(claim))
