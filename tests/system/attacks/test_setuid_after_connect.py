"""A process becomes another user after it has connected.

It connects as one user and is another when the agent looks into `/proc`: who is it? An agent that
reads the user there gives out the identity of the new one, though the kernel recorded the old one
at connect, and any later read may say something else again. In vouchd the user is the one at
connect, and one who is not that user any more is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.targets import VICTIM, VICTIM_ID, Target, connect, found_by, speak

pytestmark = pytest.mark.system


def test_setuid_after_connect(target: Target) -> None:
    def attacker(tell: Callable[[list[str]], object]) -> None:
        with connect(target.socket) as sock:
            pids.become(VICTIM)
            tell(speak(sock))

    target.judge(succeeded=VICTIM_ID in found_by(attacker))
    target.says("call refused", "changed its user or group after it connected")
