"""Reads of a process that ends: the errors that attestors.api.WorkloadRef promises."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from agent.kernel.process import ProcessView
from tests.support import pids
from tests.support.peers import child_caller

READS: list[Callable[[ProcessView], object]] = [
    lambda view: view.read("status"),
    lambda view: view.read("cgroup"),
    lambda view: view.readlink("exe"),
    lambda view: view.readlink("ns/user"),
    lambda view: view.stat("exe"),
    lambda view: view.open("status"),
    lambda view: view.open("environ"),
    lambda view: view.read("no-such-file"),
]


@pytest.mark.parametrize("read", READS)
def test_reads_of_a_process_that_was_reaped_raise_process_lookup_error(
    read: Callable[[ProcessView], object],
) -> None:
    with child_caller() as (pid, caller), caller.open_proc() as view:
        assert view.read("status")
        pids.kill_and_reap(pid)
        with pytest.raises(ProcessLookupError):
            read(view)


@pytest.mark.parametrize("read", READS)
def test_reads_of_a_zombie_raise_process_lookup_error(
    read: Callable[[ProcessView], object],
) -> None:
    with child_caller() as (pid, caller), caller.open_proc() as view:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            read(view)


def test_the_pidfd_of_a_dead_process_stays_readable_until_the_connection_ends() -> None:
    with child_caller() as (pid, caller), caller.open_proc() as view:
        pids.kill_and_reap(pid)
        assert view.pidfd == caller.process.fileno()
        caller.close()
        with pytest.raises(ProcessLookupError):
            _ = view.pidfd
