"""The attacker mounts its own program over the trusted one, in a mount namespace of its own.

In its own mount namespace, as every container has one, a process can put any file at any path. The
link `/proc/PID/exe` shows the path that the process sees: that of the trusted program. vouchd also
checks that this path names the running file in the agent's view.
"""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.support.targets import TRUSTED_ID, VICTIM, Target, fetch_ids, relayed_through

MOUNT_AND_RUN = """
import os, subprocess, sys
mine, trusted, uid, socket = sys.argv[1:]
subprocess.run(["mount", "--bind", mine, trusted], check=True)
os.setgroups([]); os.setgid(int(uid)); os.setuid(int(uid))
os.execv(trusted, [trusted, "-U", socket])
"""

pytestmark = pytest.mark.system


def test_bind_mounted_executable(target: Target) -> None:
    mine = target.programs / "mine"
    shutil.copy("/bin/nc.openbsd", mine)
    run = [sys.executable, "-c", MOUNT_AND_RUN, str(mine), str(target.trusted)]
    command = ["unshare", "--mount", *run, str(VICTIM), target.socket]
    with relayed_through(command, uid=0) as sock:
        found = fetch_ids(sock)
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log("caller attested", "no unix:path", "in another mount namespace")
