"""Power cuts at every moment at which the agent writes its state, on a real file system.

ext4, mounted in its weakest mode, stops without writing another block (FS_IOC_SHUTDOWN) and is
mounted again as after a boot: unsynced data is lost. A model of weaker file systems is in
tests/unit/authority/embedded/test_power_cut.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from agent.authority.embedded import AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.client.admin import AdminClient
from agent.client.workload import WorkloadClient
from agent.clock import SystemClock
from agent.errors import UnavailableError
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids.disk_cache import cache_secret
from tests.support import faults
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, RunningAgent, entry_for_me
from tests.support.fakes import FakeLog
from tests.support.faults import Disk

pytestmark = pytest.mark.system

# Around the fsync of the parent, and of each file its fsync, its rename, the directory's fsync.
FIRST_START = range(1, 15)


class Agent(RunningAgent):
    """Its disk loses power at write number `moment` of the agent; 0 is never."""

    def __init__(self, disk: Disk) -> None:
        self.moment = 0
        self._disk = disk
        super().__init__(entry_for_me(), data_dir=str(disk.where / "data"))

    def _program(self) -> list[str]:
        if not self.moment:
            return super()._program()
        return [
            "tests.support.dying",
            f"{self.moment}:{self._disk.where}",
            *super()._program()[1:],
        ]


@pytest.fixture
def disk() -> Iterator[Disk]:
    with faults.disk() as disk:
        yield disk


def states(agent: RunningAgent) -> dict[str, str]:
    with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
        return {a["authority_id"]: a["state"] for a in client.status()["authority"]["authorities"]}


def fetch(agent: RunningAgent) -> bytes:
    with WorkloadClient(agent.socket, SAFETY_SECONDS) as client:
        return client.fetch_x509_svids().svids[0].bundle_der


def test_a_cut_during_the_first_start_does_not_hinder_the_next_start(disk: Disk) -> None:
    agent = Agent(disk)
    try:
        agent.stop()
        for moment in FIRST_START:
            for each in (disk.where / "data").iterdir():
                each.unlink()
            (disk.where / "data").rmdir()
            command = [sys.executable, "-m", "tests.support.dying", f"{moment}:{disk.where}"]
            died = subprocess.run(
                [*command, "run", "-c", agent.config],
                cwd=REPOSITORY,
                stderr=subprocess.DEVNULL,
                timeout=SAFETY_SECONDS,
                check=False,
            )
            assert died.returncode == -signal.SIGKILL, moment
            disk.reboot()
            opens(disk.where / "data")
        agent.start()
        assert fetch(agent)
    finally:
        agent.close()


def opens(directory: Path) -> None:
    """Open the authority and the cache secret, as the agent does at its start."""
    lines, clock = FakeLog(), SystemClock()
    with closing(Keystore(directory)) as keystore:
        policy = AuthorityPolicy(
            trust_domain=TrustDomain("example.org"),
            key_type=KeyType.EC_P256,
            ttl=timedelta(hours=24),
        )
        EmbeddedAuthority.open(policy, keystore, clock, lines.log).close()
        cache_secret(keystore, None)
    assert not lines.lines


def test_the_authority_of_a_ready_agent_survives_a_cut(disk: Disk) -> None:
    agent = Agent(disk)
    try:
        known, bundle = states(agent), fetch(agent)
        faults.cut_power(str(disk.where))
        agent.kill()
        disk.reboot()
        agent.start()
        assert states(agent) == known
        assert fetch(agent) == bundle
    finally:
        agent.close()


@pytest.mark.parametrize("moment", range(1, 7))
def test_after_a_cut_a_step_of_a_rotation_is_taken_as_a_whole_or_not_at_all(
    disk: Disk, moment: int
) -> None:
    agent = Agent(disk)
    try:
        before = states(agent)
        agent.stop()
        agent.moment = moment
        agent.start()
        with (
            AdminClient(agent.admin_socket, SAFETY_SECONDS) as client,
            pytest.raises(UnavailableError),
        ):
            client.prepare_authority("x509")
        agent.kill()
        disk.reboot()
        agent.moment = 0
        agent.start()
        after = states(agent)
        # The caller gets no answer before the directory is synced.
        assert (after == before) if moment <= 3 else (moment < 6 or after != before)
        assert before.items() <= after.items()
        assert fetch(agent)
        if after == before:
            with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
                client.prepare_authority("x509")
    finally:
        agent.close()


def test_lost_svids_are_issued_anew(disk: Disk) -> None:
    """The cache is not synced, so that its file may have any content."""
    agent = Agent(disk)
    try:
        fetch(agent)
        agent.stop()
        agent.start()
        cache = disk.where / "data" / "svids.cache"
        assert cache.stat().st_size > 500
        faults.cut_power(str(disk.where))
        agent.kill()
        disk.reboot()
        agent.start()
        assert fetch(agent)
        assert "defect" not in agent.log
    finally:
        agent.close()
