"""README.md works on a bare Debian, with pip and all: what a newcomer sees.

As root: `make test-system`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import REPOSITORY
from tests.support.clone import copy_checkout
from tests.support.documents import Reader, Terminal
from tests.support.image import settings_of_pip
from tests.support.machine import Machine, debian

pytestmark = pytest.mark.system

INSTALL_SECONDS = 500.0
"""pip fetches and installs what the agent needs."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    """With the three packages that README.md names, and the checkout of an ordinary user."""
    with Machine(debian("bookworm", "python3", "python3-venv", "make")) as booted:
        booted.run("useradd", "--create-home", "reader")
        copy_checkout(files_of(booted) / "home/reader/vouchd")
        booted.run("chown", "--recursive", "reader:reader", "/home/reader")
        yield booted


def files_of(machine: Machine) -> Path:
    return Path(f"/proc/{machine.init}/root")


def way_to_packages(machine: Machine) -> list[str]:
    """The settings with which pip in the machine reaches packages as on this host."""
    settings = settings_of_pip()
    if "cert" in settings:
        shutil.copy(settings["cert"], files_of(machine) / "etc/pip-cert.pem")
        settings["cert"] = "/etc/pip-cert.pem"
    return [f"PIP_{name.upper().replace('-', '_')}={value}" for name, value in settings.items()]


def test_readme_works_as_typed(machine: Machine) -> None:
    user = ["setpriv", "--pdeathsig", "KILL", "--reuid=reader", "--regid=reader", "--init-groups"]
    clean = ["env", "-i", "HOME=/home/reader", "LANG=C.UTF-8", "PATH=/usr/bin:/bin"]
    shell = machine.inside([*clean, *way_to_packages(machine), *user, "--"])

    def open_terminal() -> Terminal:
        terminal = Terminal(shell, seconds=INSTALL_SECONDS)
        terminal.run("cd ~/vouchd")
        return terminal

    with Reader(open_terminal) as reader:
        assert reader.follow(REPOSITORY / "README.md")
