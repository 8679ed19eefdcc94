"""The how-tos for a host do what they say, each in a Debian that boots systemd.

As root: `make test-system`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import REPOSITORY
from tests.support.documents import IN_MACHINE, Reader, Terminal
from tests.support.machine import Machine
from tests.support.package import built, clean_debian

pytestmark = pytest.mark.system


@pytest.fixture
def machine() -> Iterator[Machine]:
    """With the package where `make deb` leaves it, seen from root's home directory."""
    with Machine(clean_debian()) as booted:
        build = Path(f"/proc/{booted.init}/root/root/build")
        build.mkdir()
        shutil.copy(built(), build)
        yield booted


@pytest.mark.parametrize("name", IN_MACHINE)
def test_the_how_to_works_as_typed(machine: Machine, name: str) -> None:
    shell = ["env", "-i", "HOME=/root", "LANG=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]

    def open_terminal() -> Terminal:
        terminal = Terminal(machine.inside([*shell, "setpriv", "--pdeathsig", "KILL", "--"]))
        terminal.run("cd")
        return terminal

    with Reader(open_terminal) as reader:
        assert reader.follow(REPOSITORY / name)
