"""Errors of the client that need another user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.client.workload import why_unreachable
from tests.support.pids import become, fork, reap


@pytest.mark.system
def test_the_error_about_a_closed_directory_does_not_call_the_socket_missing(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o700)
    read_end, write_end = os.pipe()

    def behave() -> None:
        become(54321)
        os.write(write_end, str(why_unreachable(tmp_path / "s")).encode())

    child = fork(behave)
    os.close(write_end)
    with os.fdopen(read_end) as output:
        assert output.read().startswith(f"no permission to connect to {tmp_path}/s: ask the")
    assert reap(child) == 0
