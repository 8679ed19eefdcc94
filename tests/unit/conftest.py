"""A unit test starts no process: such a test belongs to tests/process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTS = {
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen",
}  # fmt: skip
"""Audit events (docs.python.org, "Audit events table")."""

_started: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event in STARTS and _started is not None:
        _started.append(f"{event}{arguments[:2]}")


sys.addaudithook(_note)  # an audit hook cannot be removed


@pytest.fixture(autouse=True)
def _starts_no_process() -> Iterator[None]:
    global _started  # noqa: PLW0603 - the hook has no other way to reach the test
    _started = []
    yield
    started, _started = _started, None
    assert not started, f"a test below tests/unit started a process: {started}"
