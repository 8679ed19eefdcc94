"""A Git checkout that replaces a watched directory is reported."""

from pathlib import Path

from tests.support.repository import git
from tests.unit.config.watch.conftest import assert_noticed


async def test_checkout_that_replaces_the_directory_is_one_report(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x.yaml").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "branch", "full")
    git(tmp_path, "rm", "-r", "d")
    git(tmp_path, "commit", "-m", "without")
    await assert_noticed(
        tmp_path / "d",
        lambda: git(tmp_path, "checkout", "full"),
        lambda: git(tmp_path, "checkout", "-"),
        lambda: git(tmp_path, "checkout", "full"),
        lambda: (tmp_path / "d/x.yaml").write_text("2"),
        replacement=0.1,
    )
