"""Changes on a real disk: which are noticed, how soon, and when the files count as settled."""

import asyncio
import os
import resource
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from watchfiles._rust_notify import RustNotify

from agent import watching
from agent.watching import FileWatch, watched_directories
from tests.support.repository import git

LONG = 2.0


class _Reports:
    """Counts what a watch reports, as somebody would who reads the files each time."""

    def __init__(self, *paths: Path) -> None:
        self._watch = FileWatch(paths, structlog.get_logger())
        self.count = 0
        self._more = asyncio.Event()

    async def run(self) -> None:
        async for _ in self._watch.changes():
            self.count += 1
            self._more.set()

    async def after(self, count: int) -> None:
        """Wait until there are more than `count`."""
        while self.count <= count:
            self._more.clear()
            async with asyncio.timeout(LONG):
                await self._more.wait()


@asynccontextmanager
async def _watching(*paths: Path) -> AsyncIterator[_Reports]:
    reports = _Reports(*paths)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reports.run())
        await asyncio.sleep(0)
        yield reports
        task.cancel()


async def _assert_noticed(path: Path, *changes: Callable[[], Any]) -> None:
    """Each change is reported soon, which no glance would do."""
    async with _watching(path) as reports:
        for change in changes:
            before = reports.count
            await _rest()
            assert reports.count == before, "reported without a change"
            started = perf_counter()
            change()
            await reports.after(before)
            assert perf_counter() - started < watching.GLANCE_SECONDS / 2


async def _rest() -> None:
    """Let what belongs to the last change pass."""
    await asyncio.sleep(5 * watching.STEP_SECONDS)


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _link(place: Path, target: str | Path) -> None:
    """Make or re-point a symbolic link at one stroke."""
    new = place.with_name(f"{place.name}_tmp")
    new.symlink_to(target)
    new.replace(place)


@pytest.fixture(autouse=True)
def watches_end() -> Iterator[None]:
    """A closed watch's own thread closes its descriptors, a moment later."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    until = perf_counter() + LONG
    while len(os.listdir("/proc/self/fd")) > before and perf_counter() < until:
        threading.Event().wait(0.001)


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    directory = tmp_path / "entries"
    directory.mkdir()
    (directory / "a.yaml").write_text("1")
    return directory


# --- what is noticed ---------------------------------------------------------------------------
async def test_every_way_to_save_make_and_remove_a_file_is_noticed(entries: Path) -> None:
    a, b = entries / "a.yaml", entries / "b.yml"
    await _assert_noticed(
        entries,
        lambda: a.write_text("2"),
        lambda: _replace(a, "3"),
        lambda: b.write_text("new"),
        b.unlink,
        lambda: a.rename(entries / "a.yaml.off"),
        lambda: (entries / "a.yaml.off").rename(a),
        lambda: a.chmod(0o600),
    )


async def test_a_single_file_is_noticed_whatever_it_is_called(entries: Path) -> None:
    file = entries / "workloads.conf"
    await _assert_noticed(
        file,
        lambda: file.write_text("1"),
        lambda: _replace(file, "2"),
        file.unlink,
    )


async def test_a_quick_save_is_reported_once(entries: Path) -> None:
    async with _watching(entries) as reports:
        await _rest()
        _replace(entries / "a.yaml", "2")
        await reports.after(0)
        await _rest()
        assert reports.count == 1


async def test_many_files_written_at_once_are_one_report(entries: Path) -> None:
    async with _watching(entries) as reports:
        await _rest()
        for number in range(50):
            (entries / f"{number}.yaml").write_text("x")
        await reports.after(0)
        await _rest()
        assert reports.count == 1


async def test_other_files_reports_and_readers_are_passed_over(entries: Path) -> None:
    async with _watching(entries) as reports:
        await _rest()
        for name in ("notes.txt", ".a.yaml.swp", "4913", "a.yaml~", ".hidden.yaml", "a.yaml.bak"):
            (entries / name).write_text("x")
            (entries / name).unlink()
        (entries / "a.yaml").read_text()
        await _rest()
        assert reports.count == 0
        (entries / "a.yaml").write_text("2")
        await reports.after(0)
        await _rest()
        assert reports.count == 1


async def test_a_config_map_s_swap_is_noticed_again_and_again(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    for number in range(3):
        (version := mounted / f"..2024_{number}").mkdir(parents=True)
        (version / "a.yaml").write_text(str(number))
    _link(mounted / "..data", "..2024_0")
    _link(mounted / "a.yaml", "..data/a.yaml")

    def swap_and_remove() -> None:
        _link(mounted / "..data", "..2024_2")
        shutil.rmtree(mounted / "..2024_1")

    await _assert_noticed(
        mounted,
        lambda: _link(mounted / "..data", "..2024_1"),
        swap_and_remove,
        lambda: (mounted / "..2024_2/a.yaml").write_text("in its own directory"),
    )


@pytest.mark.parametrize("inside", ["entries", "entries/a.yaml"])
async def test_a_link_anywhere_on_the_way_may_be_re_pointed(tmp_path: Path, inside: str) -> None:
    for number in (41, 42, 43):
        (release := tmp_path / f"releases/{number}/entries").mkdir(parents=True)
        (release / "a.yaml").write_text(str(number))
    (tmp_path / "etc").mkdir()
    _link(tmp_path / "current", "releases/41")
    _link(tmp_path / "etc/vouchd", "../current")
    await _assert_noticed(
        tmp_path / "etc/vouchd" / inside,
        lambda: _link(tmp_path / "current", tmp_path / "releases/42"),
        lambda: (tmp_path / "releases/42/entries/a.yaml").write_text("changed"),
        lambda: _link(tmp_path / "etc/vouchd", "../releases/43/."),
        lambda: (tmp_path / "releases/43/entries/a.yaml").write_text("changed"),
    )


async def test_a_file_link_may_be_re_pointed_and_its_target_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "d").mkdir()
    link = tmp_path / "d/link.yaml"
    _link(link, "../one/file")
    for path in (link, link.parent):
        await _assert_noticed(
            path,
            lambda: (tmp_path / "one/file").write_text("changed"),
            lambda: _link(link, "../two/file"),
            lambda: _replace(tmp_path / "two/file", "replaced"),
            (tmp_path / "two/file").unlink,
            lambda: (tmp_path / "two/file").write_text("again"),
            lambda: _link(link, "../one/file"),
        )


async def test_a_directory_may_go_and_come_back(entries: Path) -> None:
    def make() -> None:
        entries.mkdir()
        (entries / "b.yaml").write_text("x")

    def remake() -> None:
        shutil.rmtree(entries)
        make()

    await _assert_noticed(
        entries,
        lambda: shutil.rmtree(entries),
        make,
        lambda: (entries / "b.yaml").write_text("y"),
        remake,
        lambda: (entries / "b.yaml").write_text("z"),
        lambda: entries.rename(entries.with_name("old")),
        lambda: entries.with_name("old").rename(entries),
        lambda: (entries / "b.yaml").write_text("1"),
    )


async def test_a_path_may_come_into_being_step_by_step(tmp_path: Path) -> None:
    file = tmp_path / "etc/vouchd/entries.yaml"
    await _assert_noticed(
        file,
        (tmp_path / "etc").mkdir,
        (tmp_path / "etc/vouchd").mkdir,
        lambda: file.write_text("1"),
        lambda: file.write_text("2"),
    )


async def test_what_changes_while_the_files_are_read_is_reported_again(entries: Path) -> None:
    changes = FileWatch([entries], structlog.get_logger()).changes()
    (entries / "a.yaml").write_text("since the watch was made")
    async with asyncio.timeout(LONG):
        await anext(changes)
        _replace(entries / "a.yaml", "while the caller reads")
        await anext(changes)
    await changes.aclose()  # type: ignore[attr-defined]


async def test_what_the_kernel_does_not_tell_is_found_by_a_glance(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GLANCE_SECONDS", 0.1)
    path = entries / "deep/er"
    path.mkdir(parents=True)
    async with _watching(path) as reports:
        await _rest()
        (entries / "deep").rename(entries / "old")
        await reports.after(0)


# --- what is watched ---------------------------------------------------------------------------
def test_watched_are_the_places_of_links_and_ends_and_no_more(tmp_path: Path) -> None:
    for name in ("a/b", "real/entries", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outside/x").touch()
    (tmp_path / "a/b/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/entries/x.yaml").symlink_to("../../outside/x")
    (tmp_path / "real/entries/not-read").symlink_to("../../elsewhere/x")

    def names(path: str) -> set[str]:
        return {str(each.relative_to(tmp_path)) for each in watched_directories([tmp_path / path])}

    assert names("a/b/link/entries") == {"a/b", "real/entries", "outside"}
    assert names("outside/x") == {"outside"}
    assert names("a/missing/x.yaml") == {"a"}
    assert names("outside/x/below/a/file") == {"outside"}


def test_links_that_lead_in_a_circle_are_watched_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert watched_directories([tmp_path / "a/x.yaml"]) == {tmp_path}


# --- settling ----------------------------------------------------------------------------------
async def test_a_checkout_that_replaces_the_directory_is_one_report(entries: Path) -> None:
    (entries / "d").mkdir()
    (entries / "d/x.yaml").write_text("1")
    git(entries, "init")
    git(entries, "add", ".")
    git(entries, "commit", "-m", "first")
    git(entries, "branch", "full")
    git(entries, "rm", "-r", "d")
    git(entries, "commit", "-m", "without")
    await _assert_noticed(
        entries / "d",
        lambda: git(entries, "checkout", "full"),
        lambda: git(entries, "checkout", "-"),
        lambda: git(entries, "checkout", "full"),
        lambda: (entries / "d/x.yaml").write_text("2"),
    )


async def test_a_half_written_file_is_not_reported_until_it_is_closed(entries: Path) -> None:
    async with _watching(entries) as reports:
        await _rest()
        with (entries / "a.yaml").open("w") as file:
            for part in ("entr", "ies:", " []"):
                file.write(part)
                file.flush()
                await _rest()
                assert reports.count == 0
        await reports.after(0)
        await _rest()
        assert reports.count == 1


async def test_files_that_do_not_settle_are_logged_once(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(watching, "SLOW_POLL_SECONDS", 0.05)
    with capture_logs() as logs:
        async with _watching(entries) as reports:
            await _rest()
            with (entries / "a.yaml").open("w"):
                await asyncio.sleep(0.4)
                assert reports.count == 0
            await reports.after(0)
    assert logs == [
        {
            "event": "entries not reloaded yet",
            "log_level": "warning",
            "reason": f"{entries}/a.yaml is open for writing",
        }
    ]


# --- trouble -----------------------------------------------------------------------------------
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
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.1)
    with capture_logs() as logs:
        reports = _Reports(entries)
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
    assert "Too many open files" in warning["reason"]
    assert warning["advice"] == "they are looked at every 0.1 s; SIGHUP reloads them at once"


async def test_a_watch_that_breaks_is_made_again(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.05)
    wait = watching._wait
    failures = [OSError("broken")]

    async def fail_once(watcher: RustNotify, seconds: float) -> list[str]:
        if failures:
            raise failures.pop()
        return await wait(watcher, seconds)

    monkeypatch.setattr(watching, "_wait", fail_once)
    with capture_logs() as logs:
        await _assert_noticed(entries, lambda: (entries / "a.yaml").write_text("2"))
    assert [each["reason"] for each in logs] == ["broken"]


async def test_a_directory_that_goes_before_it_is_watched_is_no_trouble(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = [entries]

    def remove_first(*args: Any, **options: Any) -> RustNotify:
        if removals:
            shutil.rmtree(removals.pop())
        return RustNotify(*args, **options)

    monkeypatch.setattr(watching, "RustNotify", remove_first)
    with capture_logs() as logs:
        async with _watching(entries) as reports:
            await reports.after(0)
            await _rest()
            entries.mkdir()
            await reports.after(1)
    assert logs == []


async def test_cancelling_leaves_no_thread_at_work(entries: Path) -> None:
    started = perf_counter()
    async with _watching(entries):
        await _rest()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert perf_counter() - started < watching.GLANCE_SECONDS / 2
