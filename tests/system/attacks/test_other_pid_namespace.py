"""The caller is in a PID namespace that the agent cannot see.

The agent runs in a container, the caller outside: SO_PEERCRED gives PID 0, because the process has
no number in the agent's namespace. An agent that continues with the user alone vouches for a
process that it cannot name, watch or read. vouchd refuses a caller that the kernel cannot name.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.targets import (
    TRUSTED_ID,
    VICTIM,
    VICTIM_ID,
    Target,
    connect,
    fetch_ids,
    found_by,
    relayed_through,
)

pytestmark = pytest.mark.system


@pytest.mark.parametrize("kind", ["naive", "vouchd"])
def test_other_pid_namespace(start: Callable[..., Target], kind: str) -> None:
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    target = start(kind, prefix=inside)

    def outsider(report: Callable[[list[str]], object]) -> None:
        pids.become(VICTIM)
        with connect(target.socket) as sock:
            report(fetch_ids(sock))

    found = found_by(outsider)
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("call refused", "in a PID namespace that is not visible from here")
    target.agent.kill()  # unshare(1) does not forward signals


def test_a_caller_in_a_child_pid_namespace_is_served(
    start: Callable[..., Target],
) -> None:
    """Such a caller is ordinary: a container's, for example."""
    target = start("vouchd")
    inside = ["unshare", "--pid", "--fork", "--kill-child"]
    as_victim = ["setpriv", f"--reuid={VICTIM}", f"--regid={VICTIM}", "--clear-groups"]
    command = [*inside, *as_victim, str(target.trusted), "-U", target.socket]
    with relayed_through(command, uid=0) as sock:
        assert fetch_ids(sock) == [VICTIM_ID, TRUSTED_ID]
