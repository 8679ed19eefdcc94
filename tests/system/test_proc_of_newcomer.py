"""A reused PID: the agent must not open the new process's files in /proc."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.attestation.attestor import WorkloadAttestor
from agent.errors import PeerGoneError
from agent.kernel.caller import identify
from attestors.api import Findings, Selector, WorkloadRef
from tests.support import pids
from tests.support.fakes import FakeAttestor, FakeLog

pytestmark = pytest.mark.system


@contextmanager
def reused() -> Iterator[tuple[socket.socket, int, Callable[[], None]]]:
    """A connected socket, its caller's PID, and a function that gives this PID to another
    process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("")
        listener.listen()

        def victim() -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(listener.getsockname())
            signal.pause()

        pid = pids.fork(victim)
        sock, _ = listener.accept()

    def reuse() -> None:
        pids.kill_and_reap(pid)
        pids.fork_as(pid, signal.pause)

    with sock:
        try:
            yield sock, pid, reuse
        finally:
            pids.kill_and_reap(pid)


_watched: list[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched is not None:
        _watched.append(str(arguments[0]))


sys.addaudithook(_audit)


@contextmanager
def opened() -> Iterator[list[str]]:
    """The paths that this process opens in the block."""
    global _watched  # noqa: PLW0603 - an audit hook cannot be removed
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


def test_identify_opens_no_file_of_a_process_that_got_the_pid_before_accept() -> None:
    with reused() as (sock, pid, reuse):
        reuse()
        os.kill(pid, 0)
        with opened() as paths, pytest.raises(PeerGoneError):
            identify(sock)
    assert not [path for path in paths if str(pid) in path]


def test_open_proc_opens_no_file_of_a_process_that_got_the_pid_after_accept() -> None:
    with reused() as (sock, pid, reuse):
        caller = identify(sock)
        reuse()
        os.kill(pid, 0)
        with opened() as paths, pytest.raises(PeerGoneError):
            caller.open_proc()
        caller.close()
    assert not [path for path in paths if str(pid) in path]


async def test_findings_are_dropped_if_the_pid_is_reused_during_attestation() -> None:
    with reused() as (sock, pid, reuse):
        caller = identify(sock)

        async def find(workload: WorkloadRef) -> Findings:
            reuse()
            os.kill(pid, 0)
            with pytest.raises(ProcessLookupError):
                workload.read("status")
            return Findings(frozenset({Selector("fake", "stolen")}))

        with pytest.raises(PeerGoneError):
            async with WorkloadAttestor([FakeAttestor(find)], FakeLog().log).attest(caller):
                pass
        caller.close()
