"""Changes on a real disk: which are noticed, how soon, and what is watched for it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from agent.config import watch
from agent.config.watch import FileWatch
from agent.config.watched_paths import watched_directories
from tests.unit.config.watch.conftest import (
    LONG,
    assert_noticed,
    following,
    point,
    replace_file,
    rest,
)


async def test_every_way_to_save_make_and_remove_a_file_is_noticed(entries: Path) -> None:
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


async def test_a_single_file_is_noticed_whatever_it_is_called(entries: Path) -> None:
    file = entries / "workloads.conf"
    await assert_noticed(
        file,
        lambda: file.write_text("1"),
        lambda: replace_file(file, "2"),
        file.unlink,
    )


async def test_a_quick_save_is_reported_once(entries: Path) -> None:
    async with following(entries) as reports:
        await rest()
        replace_file(entries / "a.yaml", "2")
        await reports.after(0)
        await rest()
        assert reports.count == 1


async def test_many_files_written_at_once_are_one_report(entries: Path) -> None:
    async with following(entries) as reports:
        await rest()
        for number in range(50):
            (entries / f"{number}.yaml").write_text("x")
        await reports.after(0)
        await rest()
        assert reports.count == 1


async def test_other_files_reports_and_readers_are_passed_over(entries: Path) -> None:
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


async def test_other_yaml_files_beside_a_single_one_are_passed_over(entries: Path) -> None:
    async with following(entries / "a.yaml") as reports:
        await rest()
        (entries / "somebody-else-s.yaml").write_text("x")
        await rest()
        assert reports.count == 0


async def test_a_config_map_s_swap_is_noticed_again_and_again(tmp_path: Path) -> None:
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
async def test_a_link_anywhere_on_the_way_may_be_re_pointed(tmp_path: Path, inside: str) -> None:
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


async def test_a_file_link_may_be_re_pointed_and_its_target_change(tmp_path: Path) -> None:
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


async def test_a_directory_may_go_and_come_back(entries: Path) -> None:
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


async def test_a_path_may_come_into_being_step_by_step(tmp_path: Path) -> None:
    file = tmp_path / "etc/vouchd/entries.yaml"
    await assert_noticed(
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
        replace_file(entries / "a.yaml", "while the caller reads")
        await anext(changes)
    await changes.aclose()


async def test_what_the_kernel_does_not_tell_is_found_by_a_glance(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GLANCE_SECONDS", 0.1)
    path = entries / "deep/er"
    path.mkdir(parents=True)
    async with following(path) as reports:
        await rest()
        (entries / "deep").rename(entries / "old")
        await reports.after(0)


async def test_what_the_kernel_does_not_tell_is_found_amid_what_is_of_no_concern(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GLANCE_SECONDS", 0.1)
    path = entries / "deep/er"
    path.mkdir(parents=True)
    async with following(path) as reports, again_and_again((path / "other.txt").touch) as moved:
        await rest()
        moved((entries / "old/er/other.txt").touch)
        (entries / "deep").rename(entries / "old")
        await reports.after(0)


async def test_changes_without_end_are_reported_all_the_same(entries: Path) -> None:
    async with following(entries) as reports, again_and_again((entries / "a.yaml").touch):
        async with asyncio.timeout(3 * watch.LONGEST_BURST_SECONDS):
            await reports.after(0)


@asynccontextmanager
async def again_and_again(
    change: Callable[[], None],
) -> AsyncIterator[Callable[[Callable[[], None]], None]]:
    """Something happens twice in each step; takes what is to happen instead."""
    happening = [change]

    async def go_on() -> None:
        while True:
            happening[-1]()
            await asyncio.sleep(watch.STEP_SECONDS / 2)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(go_on())
        yield happening.append
        task.cancel()


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
