"""A clean clone of this checkout that belongs to an ordinary user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Self

from tests.support import secrecy
from tests.support.agent import REPOSITORY
from tests.support.documents import Terminal

USER = 42010
"""The UID of the ordinary user if the tests run as root."""


def copy_checkout(directory: Path) -> None:
    """Copy the files that a clone of this checkout has."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, target)


class Clone:
    """The files of a clone of this checkout, with a `.venv` as `make` would create it.

    The `.venv` refers to the packages of the tests' environment, so pip installs nothing. A context
    manager; owns the directory.
    """

    def __enter__(self) -> Self:
        self._top = Path(tempfile.mkdtemp(prefix="vouchd-clone-", dir="/tmp"))
        self._top.chmod(0o755)
        self.directory = self._top / "vouchd"
        copy_checkout(self.directory)
        self._make_environment()
        if os.getuid() == 0:
            subprocess.run(["chown", "-R", f"{USER}:{USER}", self._top], check=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        secrecy.add_keys_below(self._top)
        shutil.rmtree(self._top)

    def terminal(self) -> Terminal:
        """Return a shell of the ordinary user in the clone, with a login environment."""
        environment = {
            "HOME": str(self._top),
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        }
        return Terminal(self._prefix, environment, self.directory)

    @property
    def _prefix(self) -> list[str]:
        if os.getuid() != 0:
            return []
        return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]

    def _make_environment(self) -> None:
        place = self.directory / ".venv"
        make = [self._python(), "-m", "venv", "--without-pip", str(place)]
        subprocess.run(make, check=True)
        [packages] = place.glob("lib/python*/site-packages")
        lines = [str(self.directory), sysconfig.get_path("purelib")]
        (packages / "borrowed.pth").write_text("\n".join([*lines, ""]))
        command = place / "bin/vouchd"
        command.write_text(
            f"#!{place}/bin/python\nfrom agent.cli.main import main\n\nmain()\n",
        )
        command.chmod(0o755)
        for marker in (".runtime", ".demo", ".installed"):
            (place / marker).touch()

    def _python(self) -> str:
        """Return a Python of the packages' version that the ordinary user may execute."""
        same = f"{sys.version_info.major}.{sys.version_info.minor}"
        usual = ("/usr/bin", "/usr/local/bin", f"{sys.base_prefix}/bin")
        for python in (f"{folder}/python{same}" for folder in usual):
            test = [*self._prefix, python, "-c", ""]
            if Path(python).exists() and not subprocess.run(test, check=False).returncode:
                return python
        raise AssertionError(f"no python{same} in {usual} that user {USER} may run")
