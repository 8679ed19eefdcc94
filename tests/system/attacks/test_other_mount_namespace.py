"""An unprivileged user mounts its own program at the trusted path.

It is the attack of the bind mount without root: a user namespace gives the right to mount in its
own mount namespace. `/proc/PID/exe` names a file of that namespace. vouchd compares the running
file with the file of that name in the agent's view. It also believes nothing about the program of a
process in another user namespace, whose owner can make a process look like any program.
"""

from __future__ import annotations

import shutil

import pytest

from tests.support.targets import TRUSTED_ID, Target, fetch_ids, relayed_through

pytestmark = pytest.mark.system


def test_other_mount_namespace(target: Target) -> None:
    mine = target.sockets / "mine"
    shutil.copy("/bin/nc.openbsd", mine)
    mine.chmod(0o755)
    script = f"mount --bind {mine} {target.trusted} && exec {target.trusted} -U {target.socket}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with relayed_through(command) as sock:
        found = fetch_ids(sock)
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log("caller attested", "no unix:path")
