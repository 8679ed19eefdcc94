"""A process becomes another user after it has connected.

It connects as one user and is another when the agent reads `/proc`. An agent that takes the user
from there gives the new user's identity, although the kernel recorded the old user at connect, and
a later read may give a third. In vouchd the user at connect counts, and a process that changed its
user is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.targets import VICTIM, VICTIM_ID, Target, connect, fetch_ids, found_by

pytestmark = pytest.mark.system


def test_setuid_after_connect(target: Target) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        with connect(target.socket) as sock:
            pids.become(VICTIM)
            report(fetch_ids(sock))

    target.record_result(succeeded=VICTIM_ID in found_by(attacker))
    target.require_log("call refused", "changed its user or group after it connected")
