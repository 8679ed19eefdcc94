"""Changes on a real disk are reported, once each, wherever the path leads."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from agent.config.watch import FileWatch
from agent.config.watch_thread import WatchTimes
from agent.config.watched_paths import look
from tests.support.agent import SAFETY_SECONDS
from tests.unit.config.watch.conftest import (
    INOTIFY_ONLY,
    assert_noticed,
    following,
    point,
    replace_file,
    rest,
)


async def test_every_way_to_save_create_and_remove_a_file_is_reported(entries: Path) -> None:
    a, b = entries / "a.yaml", entries / "b.yml"
    await assert_noticed(
        entries,
        lambda: a.write_text("2"),
        lambda: replace_file(a, "3"),
        lambda: b.write_text("new"),
        b.unlink,
        lambda: a.rename(entries / "a.yaml.off"),
        lambda: (entries / "a.yaml.off").rename(a),
        lambda: a.chmod(0o600),
    )


async def test_single_file_of_any_name_is_watched(entries: Path) -> None:
    file = entries / "workloads.conf"
    await assert_noticed(
        file,
        lambda: file.write_text("1"),
        lambda: replace_file(file, "2"),
        file.unlink,
    )


async def test_atomic_save_is_one_report(entries: Path) -> None:
    async with following(entries) as reports:
        await rest()
        replace_file(entries / "a.yaml", "2")
        await reports.after(0)
        await rest()
        assert reports.count == 1


async def test_many_files_written_together_are_one_report(entries: Path) -> None:
    async with following(entries) as reports:
        await rest()
        for number in range(50):
            (entries / f"{number}.yaml").write_text("x")
        await reports.after(0)
        await rest()
        assert reports.count == 1


async def test_other_files_and_readers_cause_no_report(entries: Path) -> None:
    async with following(entries) as reports:
        await rest()
        for name in ("notes.txt", ".a.yaml.swp", "4913", "a.yaml~", ".hidden.yaml", "a.yaml.bak"):
            (entries / name).write_text("x")
            (entries / name).unlink()
        (entries / "a.yaml").read_text()
        await rest()
        assert reports.count == 0
        (entries / "a.yaml").write_text("2")
        await reports.after(0)
        await rest()
        assert reports.count == 1


async def test_other_yaml_files_beside_a_single_file_cause_no_report(entries: Path) -> None:
    async with following(entries / "a.yaml") as reports:
        await rest()
        (entries / "other.yaml").write_text("x")
        await rest()
        assert reports.count == 0


async def test_every_swap_of_a_config_map_is_reported(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    for number in range(3):
        (version := mounted / f"..2024_{number}").mkdir(parents=True)
        (version / "a.yaml").write_text(str(number))
    point(mounted / "..data", "..2024_0")
    point(mounted / "a.yaml", "..data/a.yaml")

    def swap_and_remove() -> None:
        point(mounted / "..data", "..2024_2")
        shutil.rmtree(mounted / "..2024_1")

    await assert_noticed(
        mounted,
        lambda: point(mounted / "..data", "..2024_1"),
        swap_and_remove,
        lambda: (mounted / "..2024_2/a.yaml").write_text("in its own directory"),
    )


@pytest.mark.parametrize("inside", ["entries", "entries/a.yaml"])
async def test_re_pointed_link_anywhere_on_the_way_is_reported(tmp_path: Path, inside: str) -> None:
    for number in (41, 42, 43):
        (release := tmp_path / f"releases/{number}/entries").mkdir(parents=True)
        (release / "a.yaml").write_text(str(number))
    (tmp_path / "etc").mkdir()
    point(tmp_path / "current", "releases/41")
    point(tmp_path / "etc/vouchd", "../current")
    await assert_noticed(
        tmp_path / "etc/vouchd" / inside,
        lambda: point(tmp_path / "current", tmp_path / "releases/42"),
        lambda: (tmp_path / "releases/42/entries/a.yaml").write_text("changed"),
        lambda: point(tmp_path / "etc/vouchd", "../releases/43/."),
        lambda: (tmp_path / "releases/43/entries/a.yaml").write_text("changed"),
    )


async def test_re_pointed_file_link_and_changed_target_are_reported(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "d").mkdir()
    link = tmp_path / "d/link.yaml"
    point(link, "../one/file")
    for path in (link, link.parent):
        await assert_noticed(
            path,
            lambda: (tmp_path / "one/file").write_text("changed"),
            lambda: point(link, "../two/file"),
            lambda: replace_file(tmp_path / "two/file", "replaced"),
            (tmp_path / "two/file").unlink,
            lambda: (tmp_path / "two/file").write_text("again"),
            lambda: point(link, "../one/file"),
        )


async def test_directory_that_is_removed_and_made_again_is_watched(entries: Path) -> None:
    def make() -> None:
        entries.mkdir()
        (entries / "b.yaml").write_text("x")

    def remake() -> None:
        shutil.rmtree(entries)
        make()

    await assert_noticed(
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


async def test_path_that_appears_step_by_step_is_watched(tmp_path: Path) -> None:
    file = tmp_path / "etc/vouchd/entries.yaml"
    await assert_noticed(
        file,
        (tmp_path / "etc").mkdir,
        (tmp_path / "etc/vouchd").mkdir,
        lambda: file.write_text("1"),
        lambda: file.write_text("2"),
    )


async def test_change_since_start_is_reported_and_so_is_one_while_the_files_are_read(
    entries: Path,
) -> None:
    watch = FileWatch([entries], structlog.get_logger(), INOTIFY_ONLY)
    await watch.start()
    (entries / "a.yaml").write_text("since start")
    changes = watch.changes()
    async with asyncio.timeout(SAFETY_SECONDS):
        await anext(changes)
        replace_file(entries / "a.yaml", "while the caller reads")
        await anext(changes)
    await changes.aclose()


async def test_watch_that_was_not_started_reports_at_once(entries: Path) -> None:
    """The caller may have read the files before the first look, so a change may be missed."""
    changes = FileWatch([entries], structlog.get_logger(), INOTIFY_ONLY).changes()
    async with asyncio.timeout(SAFETY_SECONDS):
        await anext(changes)
    await changes.aclose()


async def test_reader_that_gives_up_gets_the_report_again(entries: Path) -> None:
    watch = FileWatch([entries], structlog.get_logger(), INOTIFY_ONLY)
    await watch.start()
    (entries / "a.yaml").touch()
    for _ in range(2):
        async with asyncio.timeout(SAFETY_SECONDS), aclosing(watch.changes()) as changes:
            await anext(changes)


LOOKS = WatchTimes(look=0.1)


async def test_change_without_an_event_is_found_by_a_look(entries: Path) -> None:
    path = entries / "deep/er"
    path.mkdir(parents=True)
    async with following(path, times=LOOKS) as reports:
        await rest()
        (entries / "deep").rename(entries / "old")
        await reports.after(0)


async def test_change_without_an_event_is_found_amid_events_of_other_files(entries: Path) -> None:
    path = entries / "deep/er"
    path.mkdir(parents=True)
    async with (
        following(path, times=LOOKS) as reports,
        again_and_again((path / "other.txt").touch) as switch_to,
    ):
        await rest()
        switch_to((entries / "old/er/other.txt").touch)
        (entries / "deep").rename(entries / "old")
        await reports.after(0)


async def test_changes_that_never_stop_are_reported_all_the_same(entries: Path) -> None:
    times = replace(INOTIFY_ONLY, longest_burst=0.2)
    touch = (entries / "a.yaml").touch
    async with following(entries, times=times) as reports, again_and_again(touch):
        await reports.after(0)


@asynccontextmanager
async def again_and_again(
    change: Callable[[], None],
) -> AsyncIterator[Callable[[Callable[[], None]], None]]:
    """Repeat a change, several times within each debounce; yields a function that switches it."""
    happening = [change]

    async def repeat() -> None:
        while True:
            happening[-1]()
            await asyncio.sleep(INOTIFY_ONLY.debounce / 4)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(repeat())
        yield happening.append
        task.cancel()


def test_watched_directories_hold_links_and_the_end_of_the_way(tmp_path: Path) -> None:
    for name in ("a/b", "real/entries", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outside/x").touch()
    (tmp_path / "a/b/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/entries/x.yaml").symlink_to("../../outside/x")
    (tmp_path / "real/entries/not-read").symlink_to("../../elsewhere/x")

    def names(path: str) -> set[str]:
        return {str(each.relative_to(tmp_path)) for each in look([tmp_path / path]).directories}

    assert names("a/b/link/entries") == {"a/b", "real/entries", "outside"}
    assert names("outside/x") == {"outside"}
    assert names("a/missing/x.yaml") == {"a"}
    assert names("outside/x/below/a/file") == {"outside"}


def test_links_in_a_circle_are_watched_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert look([tmp_path / "a/x.yaml"]).directories == {tmp_path}
