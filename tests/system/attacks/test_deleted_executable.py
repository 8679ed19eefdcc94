"""The trusted program was removed from the host, and one of its processes still runs.

The link in `/proc` still shows the name, followed by " (deleted)". A tolerant agent removes the
suffix, because a package update looks like that for a moment. vouchd finds no file of that name and
reports no path.
"""

from __future__ import annotations

import pytest

from tests.support.targets import TRUSTED_ID, Target, fetch_ids, relayed_through

pytestmark = pytest.mark.system


def test_deleted_executable(target: Target) -> None:
    with relayed_through([str(target.trusted), "-U", target.socket]) as sock:
        target.trusted.unlink()
        found = fetch_ids(sock)
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log("caller attested", "no unix:path", "(deleted)")
