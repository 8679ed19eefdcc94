"""Reads of a `/proc` directory, and the errors that attestors.api.WorkloadRef promises."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import AttestationError, PeerGoneError
from agent.kernel.caller import Caller
from agent.kernel.process import ProcessHandle, ProcessView

READS: list[Callable[[ProcessView], object]] = [
    lambda view: view.read("status"),
    lambda view: view.readlink("exe"),
    lambda view: view.stat("exe"),
    lambda view: view.open("status"),
]


def test_reads_are_of_the_process_itself(me: Caller) -> None:
    with me.open_proc() as view:
        assert view.read("comm").decode().strip() == Path("/proc/self/comm").read_text().strip()
        assert view.readlink("exe") == str(Path("/proc/self/exe").readlink())
        assert view.stat("exe").st_ino == Path("/proc/self/exe").stat().st_ino
        assert view.pidfd == me.process.fileno()
        assert (view.pid, view.uid, view.gid) == (os.getpid(), os.geteuid(), os.getegid())


def test_a_file_longer_than_a_page_is_read_to_its_end(me: Caller) -> None:
    """The kernel returns `maps` page by page, however large the buffer is."""
    with me.open_proc() as view:
        content = view.read("maps")
    assert len(content) > mmap.PAGESIZE
    assert b"[stack]" in content
    assert content.endswith(b"\n")


@pytest.mark.parametrize("limit", [0, 10, 5000, 100_000])
def test_a_file_without_an_end_is_read_to_the_limit(me: Caller, limit: int) -> None:
    with me.open_proc() as view:
        assert view.read("root/dev/zero", limit) == bytes(limit)


@pytest.mark.parametrize("read", [*READS, lambda view: view.pidfd])
def test_a_closed_view_raises_process_lookup_error(
    me: Caller, read: Callable[[ProcessView], object]
) -> None:
    view = me.open_proc()
    view.close()
    view.close()
    with pytest.raises(ProcessLookupError):
        read(view)


@pytest.mark.parametrize("read", [*READS, lambda view: view.pidfd])
def test_a_view_raises_process_lookup_error_after_its_connection_was_closed(
    me: Caller, read: Callable[[ProcessView], object]
) -> None:
    with me.open_proc() as view:
        me.close()
        with pytest.raises(ProcessLookupError):
            read(view)


def test_a_file_that_a_living_process_does_not_have_is_not_a_dead_process(me: Caller) -> None:
    with me.open_proc() as view:
        for read in (view.read, view.readlink, view.stat, view.open):
            with pytest.raises(FileNotFoundError):
                read("no-such-file")


def test_a_closed_handle_is_a_dead_process(me: Caller) -> None:
    me.close()
    me.close()
    assert not me.process.is_alive()
    with pytest.raises(ProcessLookupError):
        me.process.fileno()
    with pytest.raises(PeerGoneError):
        me.open_proc()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(), PeerGoneError),
        (OSError(errno.EMFILE, "Too many open files"), AttestationError),
    ],
)
def test_a_proc_directory_that_cannot_be_opened_is_no_view(
    me: Caller, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[Exception]
) -> None:
    def refuse(*_args: object, **_options: object) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(expected):
            me.open_proc()


def test_the_directory_of_a_process_that_dies_meanwhile_is_closed_unread(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory may already be a successor's."""
    answers = iter([True, False])
    monkeypatch.setattr(ProcessHandle, "is_alive", lambda _self: next(answers))
    with pytest.raises(PeerGoneError):
        me.open_proc()
