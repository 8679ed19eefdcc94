"""An old version of the trusted program goes on running after it was replaced.

The program was updated because its old version can be made to do what an attacker wants. A process
of the old version is still there, or is kept there on purpose, and its link in `/proc` gives the
name of the new one with a remark behind it. An agent that takes the name serves it. vouchd reports
a path only if that path names, by device, inode, size and times, the very file that runs.
"""

from __future__ import annotations

import shutil

import pytest

from tests.support.targets import TRUSTED_ID, Target, speak, talking_through

pytestmark = pytest.mark.system


def test_replaced_executable(target: Target) -> None:
    with talking_through([str(target.trusted), "-U", target.socket]) as sock:
        update = target.trusted.with_suffix(".new")
        shutil.copy(target.trusted, update)
        update.rename(target.trusted)
        found = speak(sock)
    target.judge(succeeded=TRUSTED_ID in found)
    target.says("caller attested", "no unix:path", "replaced, deleted")
