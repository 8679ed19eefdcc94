"""A process adds a group after it has connected.

Groups can change at any time; a launcher that prepares another program has the right to do it.
SO_PEERGROUPS has the groups at connect. vouchd reports these, and only while the process still has
exactly these.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.targets import GROUP_ID, Target, connect, fetch_ids, found_by

pytestmark = pytest.mark.system


def test_setgroups_after_connect(target: Target) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        os.setgroups([])
        with connect(target.socket) as sock:
            os.setgroups([7001])
            report(fetch_ids(sock))

    target.record_result(succeeded=GROUP_ID in found_by(attacker))
    target.require_log("call refused", "changed its supplementary groups after it connected")
