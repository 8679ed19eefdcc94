"""An old version of the trusted program still runs after an update.

The old version has a flaw that an attacker can use; the update mended it. A process of the old
version still runs, perhaps kept on purpose, and its link in `/proc` has the name of the new version
with a suffix. An agent that takes the name serves it. vouchd reports a path only if that path names
the running file by device, inode, size and times.
"""

from __future__ import annotations

import shutil

import pytest

from tests.support.targets import TRUSTED_ID, Target, fetch_ids, relayed_through

pytestmark = pytest.mark.system


def test_replaced_executable(target: Target) -> None:
    with relayed_through([str(target.trusted), "-U", target.socket]) as sock:
        update = target.trusted.with_suffix(".new")
        shutil.copy(target.trusted, update)
        update.rename(target.trusted)
        found = fetch_ids(sock)
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log("caller attested", "no unix:path", "replaced, deleted")
