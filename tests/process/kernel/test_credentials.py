"""Credentials of a real child process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agent.kernel.credentials import read_credentials
from tests.support import pids
from tests.support.peers import listening


def test_more_groups_than_getsockopt_of_python_returns_are_all_read() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to take on groups")
    groups = list(range(5000, 5600))

    def child(path: Path) -> None:
        os.setgroups(groups)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(path))
            sock.recv(1)

    with listening() as (listener, path), pids.sleeping_child(lambda: child(path)):
        sock, _ = listener.accept()
        with sock:
            assert read_credentials(sock).groups == tuple(groups)
