"""When entry files count as settled: nobody writes them, and git has finished its work."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config.busy_files import unsettled
from tests.support.repository import git


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    directory = tmp_path / "entries"
    directory.mkdir()
    (directory / "a.yaml").write_text("1")
    return directory


def test_a_file_open_for_writing_is_unsettled_until_it_is_closed(entries: Path) -> None:
    assert unsettled([entries]) is None
    with (entries / "a.yaml").open("a"):
        for path in (entries, entries / "a.yaml"):
            assert unsettled([path]) == f"{entries}/a.yaml is open for writing"
    assert unsettled([entries]) is None
    with (entries / "a.yaml").open(), (entries / "notes.txt").open("w"):
        assert unsettled([entries]) is None


def test_what_nobody_can_tell_of_counts_as_settled(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(entries / "fifo.yaml")
    (entries / "directory.yaml").mkdir()
    (entries / "nowhere.yaml").symlink_to("nowhere")
    assert unsettled([entries, entries / "missing"]) is None

    def refuse(*_: int) -> int:
        raise PermissionError(13, "Permission denied")

    for module, name in ((fcntl, "fcntl"), (os, "open")):
        with (entries / "a.yaml").open("a"), monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            assert unsettled([entries]) is None


def test_looking_for_writers_harms_neither_them_nor_us(entries: Path) -> None:
    """A lease makes who opens the file wait, and has us sent a signal that may not end us."""
    script = """if True:
        import sys
        from pathlib import Path
        from agent.config.busy_files import unsettled
        seen = {unsettled([Path(sys.argv[1])]) for _ in range(20_000)}
        print(len(seen))
    """
    file = entries / "a.yaml"
    looking = subprocess.Popen([sys.executable, "-c", script, file], stdout=subprocess.PIPE)
    with looking:
        while looking.poll() is None:
            file.write_text("x")
    assert looking.returncode == 0


@pytest.fixture
def work_tree(entries: Path) -> Path:
    """Another work tree of a repository, whose `.git` is a file."""
    git(entries, "init")
    git(entries, "add", ".")
    git(entries, "commit", "-m", "first")
    git(entries, "worktree", "add", "../other")
    return entries.with_name("other")


def test_files_are_unsettled_while_git_is_at_work(entries: Path, work_tree: Path) -> None:
    (work_tree / "below").mkdir()
    outside = entries.with_name("outside.yaml")
    outside.symlink_to("other/a.yaml")
    for directory, paths in (
        (entries / ".git", [entries, entries / "a.yaml"]),
        (entries / ".git/worktrees/other", [work_tree, work_tree / "below", outside]),
    ):
        lock = directory / "index.lock"
        assert [unsettled([path]) for path in paths] == [None] * len(paths)
        lock.touch()
        told = f"git is at work: {lock} exists"
        assert [unsettled([path]) for path in paths] == [told] * len(paths)
        assert unsettled([entries.with_name("elsewhere")]) is None
        lock.unlink()


def test_a_git_file_that_points_nowhere_is_no_hindrance(entries: Path) -> None:
    for content in (b"", b"gitdir: nowhere", b"\xff"):
        (entries / ".git").write_bytes(content)
        assert unsettled([entries]) is None


def test_a_git_that_leads_nowhere_is_no_trouble(entries: Path) -> None:
    dot_git = entries / ".git"
    for content in (b"gitdir: a\0b", b"gitdir: /nowhere", b"\xff" * 10_000, b""):
        dot_git.write_bytes(content)
        assert unsettled([entries]) is None
    dot_git.unlink()
    os.mkfifo(dot_git)
    assert unsettled([entries]) is None
