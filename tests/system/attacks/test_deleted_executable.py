"""The trusted program was removed from the host, and one of its processes still runs.

The link in `/proc` still shows the name, followed by " (deleted)". A tolerant agent cuts this off,
because a package update looks like that for a moment. vouchd finds no file of that name and reports
no path.
"""

from __future__ import annotations

import pytest

from tests.support.targets import TRUSTED_ID, Target, speak, talking_through

pytestmark = pytest.mark.system


def test_deleted_executable(target: Target) -> None:
    with talking_through([str(target.trusted), "-U", target.socket]) as sock:
        target.trusted.unlink()
        found = speak(sock)
    target.judge(succeeded=TRUSTED_ID in found)
    target.says("caller attested", "no unix:path", "(deleted)")
