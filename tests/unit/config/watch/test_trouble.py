"""Where nothing can be watched, or a watch breaks."""

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from inotify_simple import INotify
from structlog.testing import capture_logs

from agent.config import watch
from tests.support.agent import REPOSITORY
from tests.unit.config.watch.conftest import Reports, assert_noticed, following, replace_file, rest


@contextmanager
def _no_more_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))  # one, to list directories
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_where_nothing_can_be_watched_one_warning_is_logged_and_glances_go_on(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.1)
    with capture_logs() as logs:
        reports = Reports(entries)
        with _no_more_descriptors():
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(reports.run())
                await asyncio.sleep(0.3)
                assert reports.count == 0
                (entries / "a.yaml").write_text("2")
                await reports.after(0)
                task.cancel()
    (warning,) = logs
    assert warning["event"] == "entry files cannot be watched"
    assert "too many open files" in warning["reason"]
    assert warning["advice"] == "they are looked at every 0.1 s; SIGHUP reloads them at once"


async def test_a_directory_that_goes_before_it_is_watched_is_no_trouble(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = [entries]

    def remove_first(*, nonblocking: bool) -> INotify:
        if removals:
            shutil.rmtree(removals.pop())
        return INotify(nonblocking=nonblocking)

    monkeypatch.setattr(watch, "INotify", remove_first)
    with capture_logs() as logs:
        async with following(entries) as reports:
            await reports.after(0)
            await rest()
            entries.mkdir()
            await reports.after(1)
    assert logs == []


async def test_an_exhausted_limit_of_watches_is_not_called_a_full_disk(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(INotify, "add_watch", refuse)
    with capture_logs() as logs:
        async with following(entries):
            await rest()
    assert "fs.inotify.max_user_watches" in logs[0]["reason"]


async def test_what_the_kernel_lost_count_of_is_looked_at(entries: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    others = [entries / "one.txt", entries / "two.txt"]
    for other in others:
        other.touch()

    def overflow() -> None:
        for number in range(most + 2):  # alternately, or the kernel makes one event of two
            others[number % 2].touch()
        replace_file(entries / "a.yaml", "2")

    await assert_noticed(entries, overflow)


def test_no_other_program_is_run_to_watch(entries: Path) -> None:
    """The agent's unit has one process, and what it may execute is its own business."""
    script = """if True:
        import sys
        from pathlib import Path
        from agent.config.watch import Directories

        def refuse(event, _arguments):
            if event in {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.system"}:
                raise RuntimeError(event)

        sys.addaudithook(refuse)
        Directories().follow([Path(sys.argv[1])])
    """
    subprocess.run([sys.executable, "-c", script, entries], check=True, cwd=REPOSITORY)
