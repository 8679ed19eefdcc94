"""An ordinary user puts a program of his own at the trusted path, without any right to.

The same as with a bind mount, by somebody who is not root: a user namespace of one's own gives the
right to mount in a mount namespace of one's own. `/proc/PID/exe` names a file of that other
namespace. vouchd compares the file that runs with the file of that name in its own view; and it
believes nothing about the program of a process in a user namespace that is not its own, because
whoever rules there can make a process look like any program.
"""

from __future__ import annotations

import shutil

import pytest

from tests.support.targets import TRUSTED_ID, Target, speak, talking_through

pytestmark = pytest.mark.system


def test_other_mount_namespace(target: Target) -> None:
    mine = target.meeting / "mine"
    shutil.copy("/bin/nc.openbsd", mine)
    mine.chmod(0o755)
    script = f"mount --bind {mine} {target.trusted} && exec {target.trusted} -U {target.socket}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with talking_through(command) as sock:
        found = speak(sock)
    target.judge(succeeded=TRUSTED_ID in found)
    target.says("caller attested", "no unix:path")
