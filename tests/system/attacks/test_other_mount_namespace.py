"""An unprivileged user mounts its own program at the trusted path.

It is the attack of the bind mount without root: a user namespace gives the right to mount in its
own mount namespace. `/proc/PID/exe` names a file of that namespace. vouchd compares the running
file with the file of that name in the agent's view. It also believes nothing about the program of a
process in another user namespace, whose owner can make a process look like any program.
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
