"""The trusted program runs in a user namespace that the attacker controls.

It is the trusted file, at its own path, in the agent's view. But in its user namespace the attacker
has all capabilities over the process: it may trace it, inject code, change its executable link
(PR_SET_MM) and send in its name (SCM_CREDENTIALS). vouchd reports no selector of its program; its
user counts as before.
"""

from __future__ import annotations

import pytest

from tests.support.targets import TRUSTED_ID, VICTIM_ID, Target, fetch_ids, relayed_through

pytestmark = pytest.mark.system


def test_other_user_namespace(target: Target) -> None:
    command = ["unshare", "--user", "--map-root-user", str(target.trusted), "-U", target.socket]
    with relayed_through(command) as sock:
        found = fetch_ids(sock)
    assert VICTIM_ID in found, "the selectors of its user count"
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log("caller attested", "no program selectors")
