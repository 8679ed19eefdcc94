"""A change is reported when files are complete: closed, and no longer being replaced."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from structlog.testing import capture_logs

from tests.unit.config.watch.conftest import (
    INOTIFY_ONLY,
    NEVER,
    assert_noticed,
    following,
    replace_file,
    rest,
    until,
)

# Longer than a test: only the event that is waited for ends the wait.
PATIENT = replace(INOTIFY_ONLY, writer=NEVER, replacement=NEVER, longest_burst=NEVER)


async def test_half_written_file_is_not_reported_until_it_is_closed(entries: Path) -> None:
    async with following(entries, times=PATIENT) as reports:
        with (entries / "a.yaml").open("w") as file:
            for part in ("entr", "ies:", " []"):
                file.write(part)
                file.flush()
                await rest()
                assert reports.count == 0
        await reports.after(0)
        await rest()
        assert reports.count == 1


async def test_open_file_delays_the_report_of_another_one_too(entries: Path) -> None:
    async with following(entries, times=PATIENT) as reports:
        with (entries / "a.yaml").open("w"):
            replace_file(entries / "b.yaml", "2")
            await rest()
            assert reports.count == 0
        await reports.after(0)


async def test_file_that_stays_open_delays_a_report_for_a_limited_time(entries: Path) -> None:
    async with following(entries, times=replace(PATIENT, writer=0.1)) as reports:
        with (entries / "a.yaml").open("w"):
            await reports.after(0)


async def test_file_that_is_written_and_renamed_or_removed_delays_nothing(entries: Path) -> None:
    async with following(entries, times=replace(PATIENT, replacement=0)) as reports:
        for change in (Path.unlink, lambda path: path.rename(entries / "elsewhere")):
            before = reports.count
            with (entries / "b.yaml").open("w"):
                change(entries / "b.yaml")
                await reports.after(before)
            await rest()


async def test_open_file_that_delays_a_reload_is_logged_once(entries: Path) -> None:
    with capture_logs() as logs:
        async with following(entries, times=replace(PATIENT, warn=0.05)) as reports:
            with (entries / "a.yaml").open("w"):
                await until(lambda: logs)
                await rest()  # longer than `warn`
                assert reports.count == 0
            await reports.after(0)
    assert logs == [
        {
            "event": "entries not reloaded yet",
            "log_level": "warning",
            "reason": f"{entries}/a.yaml is open for writing",
        }
    ]


async def test_file_that_went_is_reported_when_its_replacement_is_there(entries: Path) -> None:
    """`git checkout` and `rm; cp` replace a file in two steps; between them it grants nothing."""
    async with following(entries, times=PATIENT) as reports:
        (entries / "a.yaml").unlink()
        await rest()
        assert reports.count == 0
        (entries / "a.yaml").write_text("2")
        await reports.after(0)


async def test_file_that_does_not_come_back_is_reported_after_a_limited_time(
    entries: Path,
) -> None:
    await assert_noticed(entries, (entries / "a.yaml").unlink, replacement=0.1)


async def test_directory_that_is_being_filled_is_one_report(entries: Path) -> None:
    """The watch of a new directory begins when its first files may be written already."""
    async with following(entries / "new", times=PATIENT) as reports:
        (entries / "new").mkdir()
        file = os.open(entries / "new/x.yaml", os.O_CREAT | os.O_WRONLY)
        for _ in range(20):
            os.write(file, b"# part of the file\n")
            await asyncio.sleep(INOTIFY_ONLY.debounce / 4)
        assert reports.count == 0
        os.close(file)
        await reports.after(0)
        await rest()
        assert reports.count == 1
