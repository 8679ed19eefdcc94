"""When files count as settled."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.config import watch
from tests.support.repository import git
from tests.unit.config.watch.conftest import assert_noticed, following, rest


async def test_a_checkout_that_replaces_the_directory_is_one_report(entries: Path) -> None:
    (entries / "d").mkdir()
    (entries / "d/x.yaml").write_text("1")
    git(entries, "init")
    git(entries, "add", ".")
    git(entries, "commit", "-m", "first")
    git(entries, "branch", "full")
    git(entries, "rm", "-r", "d")
    git(entries, "commit", "-m", "without")
    await assert_noticed(
        entries / "d",
        lambda: git(entries, "checkout", "full"),
        lambda: git(entries, "checkout", "-"),
        lambda: git(entries, "checkout", "full"),
        lambda: (entries / "d/x.yaml").write_text("2"),
    )


async def test_a_half_written_file_is_not_reported_until_it_is_closed(entries: Path) -> None:
    async with following(entries) as reports:
        await rest()
        with (entries / "a.yaml").open("w") as file:
            for part in ("entr", "ies:", " []"):
                file.write(part)
                file.flush()
                await rest()
                assert reports.count == 0
        await reports.after(0)
        await rest()
        assert reports.count == 1


async def test_files_that_do_not_settle_are_logged_once(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(watch, "SLOW_POLL_SECONDS", 0.05)
    with capture_logs() as logs:
        async with following(entries) as reports:
            await rest()
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


async def test_a_lock_that_a_crashed_git_has_left_delays_a_report_and_no_more(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GIT_SECONDS", 0.1)
    (entries / ".git").mkdir()
    (entries / ".git/index.lock").touch()
    async with following(entries) as reports:
        (entries / "a.yaml").write_text("2")
        await reports.after(0)
