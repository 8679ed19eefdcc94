"""Faults of the host: the agent is killed, its disk is full, descriptors or memory run out.

The agent serves, or ends with a sentence that names the cause. Its state stays consistent. After
the fault it continues, by itself or at its next start.
"""

from __future__ import annotations

import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509

from agent.authority.embedded import FILE
from agent.client.admin import AdminClient
from agent.client.workload import WorkloadClient, X509Update
from agent.errors import UnavailableError, VouchdError
from agent.svids.disk_cache import FILE as CACHE_FILE
from agent.svids.disk_cache import SETTLE_SECONDS
from tests.support import cgroups, faults
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, RunningAgent

pytestmark = pytest.mark.system

TAKEN = 8

KILLS = 6
CLIENTS = 4
IDENTITIES = 20
ENTRIES = "entries:\n" + "".join(
    f"  - {{spiffe_id: /test/{n}, selectors: ['unix:uid:0']}}\n" for n in range(IDENTITIES)
)


def fetch(agent: RunningAgent) -> X509Update:
    with WorkloadClient(agent.socket, SAFETY_SECONDS) as client:
        return client.fetch_x509_svids()


def serials(update: X509Update) -> dict[str, int]:
    return {
        svid.spiffe_id: x509.load_der_x509_certificate(svid.chain_der).serial_number
        for svid in update.svids
    }


def active(agent: RunningAgent) -> set[str]:
    with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
        found = client.status()["authority"]["authorities"]
    return {each["authority_id"] for each in found if each["state"] == "active"}


# --- killed --------------------------------------------------------------------------------------


class Load:
    """Clients that fetch without pause, and remember each SVID and bundle."""

    def __init__(self, agent: RunningAgent) -> None:
        self.seen: defaultdict[str, set[int]] = defaultdict(set)
        self.bundles: set[bytes] = set()
        self.wrong: list[Exception] = []
        self._agent = agent
        self._rounds = threading.Semaphore(0)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, fetches: int) -> None:
        for _ in range(fetches):
            assert self._rounds.acquire(timeout=SAFETY_SECONDS)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(SAFETY_SECONDS)

    def _run(self) -> None:
        while not self._ended.wait(0.01):
            try:
                update = fetch(self._agent)
            except UnavailableError:
                continue  # the agent is not running
            except Exception as error:  # noqa: BLE001 - the test reports every error
                self.wrong.append(error)
                return
            for spiffe_id, serial in serials(update).items():
                self.seen[spiffe_id].add(serial)
            self.bundles.update(svid.bundle_der for svid in update.svids)
            self._rounds.release()


def test_an_agent_killed_under_load_serves_the_same_svids_after_each_start() -> None:
    moment = random.Random(6)  # noqa: S311 - the same moments each time
    agent = RunningAgent(ENTRIES)
    load = Load(agent)
    try:
        load.wait_for(1)
        wait_for_cache(agent, IDENTITIES)
        for _ in range(KILLS):
            load.wait_for(moment.randrange(1, 30))
            agent.kill()
            agent.start()
        load.wait_for(CLIENTS)
    finally:
        load.end()
        agent.close()
    assert not load.wrong
    assert len(load.bundles) == 1, "the same authority all the time"
    assert {len(each) for each in load.seen.values()} == {1}, "the same SVIDs all the time"
    assert len(load.seen) == IDENTITIES


def wait_for_cache(agent: RunningAgent, svids: int) -> None:
    """Wait until so many SVIDs are saved."""
    path = agent.directory / "data" / CACHE_FILE
    pause = threading.Event()
    for _ in range(int(SAFETY_SECONDS * 20)):
        if path.exists() and path.stat().st_size > svids * 600:
            return
        pause.wait(0.05)
    raise AssertionError(agent.log)


def test_an_agent_killed_during_a_save_starts_with_the_saved_svids() -> None:
    """A kill in the middle of a save leaves half a record; that SVID is issued anew."""
    pause, moment = threading.Event(), random.Random(6)  # noqa: S311 - the same moments each time
    agent = RunningAgent(ENTRIES)
    try:
        for attempt in range(4):
            known = serials(fetch(agent))
            pause.wait(SETTLE_SECONDS + moment.uniform(-0.1, 0.1))
            agent.kill()
            agent.start()
            again = serials(fetch(agent))
            assert set(again) == set(known)
            agent.kill()
            agent.entries.write_text(ENTRIES.replace("/test/", f"/test{attempt}/"))
            agent.start()
        assert "defect" not in agent.log
    finally:
        agent.close()


# --- the disk ------------------------------------------------------------------------------------


@contextmanager
def full(where: Path) -> Iterator[None]:
    filling = faults.fill(where)
    yield
    filling.unlink()


@contextmanager
def read_only(where: Path) -> Iterator[None]:
    faults.remount(where, "ro")
    yield
    faults.remount(where, "rw")


Fault = Callable[[Path], AbstractContextManager[None]]
FAULTS = [(full, "No space left on device: make room"), (read_only, "Read-only file system: mount")]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_agent_logs_a_failed_disk_and_serves(fault: Fault, reason: str) -> None:
    with faults.small_disk("256k") as where:
        agent = RunningAgent(ENTRIES, data_dir=str(where / "data"))
        try:
            stored = where / "data" / FILE
            before = stored.read_bytes(), active(agent)
            with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
                with fault(where):
                    with pytest.raises(VouchdError, match=reason):
                        client.prepare_authority("x509")
                    known = serials(fetch(agent))
                    assert reason in agent.wait_for_log("svid cache not saved")
                    assert (stored.read_bytes(), active(agent)) == before
                client.prepare_authority("x509")
                client.activate_authority("x509")
            assert active(agent) != before[1]
            assert serials(fetch(agent)) == known
            assert agent.stop() == 0
            agent.start()
            assert serials(fetch(agent)) == known, "saved after the fault"
        finally:
            agent.close()


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
@pytest.mark.parametrize("first_start", [True, False])
def test_agent_that_cannot_write_at_its_start_serves_or_names_the_reason(
    fault: Fault, reason: str, *, first_start: bool
) -> None:
    with faults.small_disk("256k") as where:
        agent = RunningAgent(ENTRIES, data_dir=str(where / "data"))
        try:
            known = serials(fetch(agent))
            agent.stop()
            if first_start:
                (where / "data" / FILE).unlink()
            kept = contents(where / "data")
            with fault(where):
                if not first_start:  # everything is there: nothing needs to be written
                    agent.start()
                    assert serials(fetch(agent)) == known
                    agent.stop()
                else:
                    message = fails_to_start(agent)
                    assert reason in message
                    assert str(where / "data") in message
                assert contents(where / "data") == kept
            agent.start()
            assert set(serials(fetch(agent))) == set(known)
            assert first_start or serials(fetch(agent)) == known
        finally:
            agent.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in directory.iterdir()}


def fails_to_start(agent: RunningAgent, *prefix: str) -> str:
    """Start an agent that must fail, and return its one sentence."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "agent", "run", "-c", agent.config],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SAFETY_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    *before, last = done.stderr.splitlines()
    assert last.startswith("vouchd: ")
    assert all("svid cache" in line for line in before), done.stderr
    return last


# --- descriptors ---------------------------------------------------------------------------------


def test_an_agent_without_free_descriptors_waits_and_keeps_its_state() -> None:
    agent = RunningAgent(ENTRIES)
    try:
        known = serials(fetch(agent))
        wait_for_cache(agent, IDENTITIES)
        before = active(agent)
        with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
            while client.status()["connections"]:  # over a connection that stays open
                pass  # the connections of the fetch may take a moment to end
            in_use = len(list(Path(f"/proc/{agent.pid}/fd").iterdir()))
            _soft, hard = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
            # The limit applies to new descriptors; the first few are in use for good.
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (TAKEN, hard))
            with connected(agent):
                assert "Too many open files" in agent.wait_for_log("cannot accept connections")
                with pytest.raises(VouchdError, match="Too many open files: allow the agent more"):
                    client.prepare_authority("x509")
            # Room for two connections; those that take it close again.
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (in_use + 14, hard))
            with ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(connected(agent))
            assert serials(fetch(agent)) == known
            assert active(agent) == before
            client.prepare_authority("x509")
        agent.kill()
        agent.start()
        assert active(agent) == before
        assert serials(fetch(agent)) == known
    finally:
        agent.close()


@contextmanager
def connected(agent: RunningAgent) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(agent.socket))
        yield


# --- memory --------------------------------------------------------------------------------------


def test_an_agent_killed_for_its_memory_loses_no_state() -> None:
    """As MemoryMax= does. The kernel's log has the cause."""
    agent = RunningAgent(ENTRIES)
    try:
        known = serials(fetch(agent))
        wait_for_cache(agent, IDENTITIES)
        before = active(agent)
        with memory_limit(f"vouchd-test-{agent.pid}", 16 << 20) as directory:
            directory.take(agent.pid)
            with suppress(VouchdError):
                for _ in range(1000):
                    fetch(agent)
            agent.kill()
            starting = subprocess.run(
                [
                    *directory.enter_command(),
                    sys.executable,
                    "-m",
                    "agent",
                    "run",
                    "-c",
                    agent.config,
                ],
                cwd=REPOSITORY,
                capture_output=True,
                timeout=SAFETY_SECONDS,
                check=False,
            )
            assert starting.returncode == -signal.SIGKILL
        agent.start()
        assert active(agent) == before
        assert serials(fetch(agent)) == known
    finally:
        agent.close()


@contextmanager
def memory_limit(name: str, limit: int) -> Iterator[cgroups.Directory]:
    with cgroups.directory(name) as directory:
        files = [
            root / name / file
            for root in cgroups.hierarchies()
            for file in ("memory.limit_in_bytes", "memory.max")
        ]
        [file] = [each for each in files if each.exists()]
        file.write_text(str(limit))
        yield directory


# --- from the start ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "unit", "amounts", "problem", "remedy"),
    [
        ("nofile", 1, (12, 16, 63), "only {} open files are allowed", "LimitNOFILE="),
        ("as", 1 << 20, (200, 300, 1000), "limited to {} MiB", "MemoryMax="),
    ],
    ids=["descriptors", "address space"],
)
def test_an_agent_with_too_little_of_a_resource_does_not_start(
    limit: str, unit: int, amounts: tuple[int, ...], problem: str, remedy: str
) -> None:
    agent = RunningAgent(ENTRIES)
    try:
        agent.stop()
        for amount in amounts:
            message = fails_to_start(agent, "prlimit", f"--{limit}={amount * unit}")
            assert problem.format(amount) in message
            assert remedy in message
    finally:
        agent.start()
        agent.close()
