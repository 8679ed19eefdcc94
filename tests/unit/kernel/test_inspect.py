"""Facts about a process that an operator names by its PID."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from agent.errors import PeerGoneError
from agent.kernel.inspect import facts_of, process_by_pid


def test_the_facts_of_this_process_are_those_of_proc() -> None:
    with closing(process_by_pid(os.getpid())) as caller:
        facts = facts_of(caller)
    assert (facts["pid"], facts["uid"], facts["gid"]) == (os.getpid(), os.geteuid(), os.getegid())
    assert set(facts["supplementary_gids"]) == set(os.getgroups())
    assert facts["executable"] == str(Path("/proc/self/exe").readlink())
    assert facts["cgroup"] == Path("/proc/self/cgroup").read_text().splitlines()
    assert facts["display_only_read_by_pid"]["process_tree"][0].startswith(f"{os.getpid()} ")


@pytest.mark.parametrize("pid", [2**22 + 1, 2**40, -1])
def test_a_pid_without_a_process_is_refused(pid: int) -> None:
    with pytest.raises(PeerGoneError, match=f"there is no process {pid}"):
        process_by_pid(pid)
