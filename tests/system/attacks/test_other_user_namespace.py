"""The trusted program runs in a user namespace that the attacker rules.

It is the trusted file, at its own path, in the agent's own view. But inside its user namespace the
attacker has every capability over it: may trace it, put code into it, give it another executable
link (PR_SET_MM) and speak in its name (SCM_CREDENTIALS). vouchd does not report any selector of its
program; who it is counts as before.
"""

from __future__ import annotations

import pytest

from tests.support.targets import TRUSTED_ID, VICTIM_ID, Target, speak, talking_through

pytestmark = pytest.mark.system


def test_other_user_namespace(target: Target) -> None:
    command = ["unshare", "--user", "--map-root-user", str(target.trusted), "-U", target.socket]
    with talking_through(command) as sock:
        found = speak(sock)
    assert VICTIM_ID in found, "its user is who it is"
    target.judge(succeeded=TRUSTED_ID in found)
    target.says("caller attested", "no selectors of its program")
