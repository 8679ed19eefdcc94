"""Kernels with a weaker proof of the caller: logged, counted, and refused where required."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from agent.kernel import process as process_module
from agent.kernel.caller import Caller, Proof
from agent.kernel.credentials import Credentials
from agent.kernel.process import ProcessHandle
from agent.pb import workloadapi_pb2 as pb
from tests.support import raw
from tests.support.agent import REPOSITORY, RunningAgent
from tests.support.cli import command
from tests.support.old_kernel import without_peerpidfd

BELOW_6_5 = without_peerpidfd("ENOPROTOOPT")
BELOW_6_16 = without_peerpidfd("EINVAL")


def outcome(agent: RunningAgent) -> int | str:
    client = raw.connect(str(agent.socket))
    with client.sock:
        stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
        try:
            return pb.X509SVIDResponse.FromString(client.message(stream)).svids[0].spiffe_id
        except AssertionError:
            return client.calls[stream].status or 0


def test_a_kernel_without_peerpidfd_serves_callers_and_logs_their_proof(
    agent_factory: Callable[..., RunningAgent],
) -> None:
    agent = agent_factory(prefix=BELOW_6_5, config="log: {level: debug}")
    for _ in range(3):
        assert outcome(agent) == "spiffe://example.org/test/me"
    assert "proof=pidfd_open" in agent.wait_for_log("caller attested")
    assert agent.log.count("Z warning ") == 1, "one warning"
    assert "caller proof is weak" in agent.wait_for_log("Z warning ")
    agent.stop()
    line = agent.wait_for_log("connections with weak proof")
    assert "count=3" in line
    assert "no SO_PEERPIDFD (Linux 6.5)" in line


def test_a_weaker_proof_is_refused_where_the_stronger_is_required(
    agent_factory: Callable[..., RunningAgent],
) -> None:
    agent = agent_factory(prefix=BELOW_6_5, config="require_proof: peerpidfd")
    assert outcome(agent) == raw.PERMISSION_DENIED
    assert "require_proof asks for peerpidfd" in agent.wait_for_log("call refused")


def test_the_stronger_proof_is_served_where_it_is_required(
    agent_factory: Callable[..., RunningAgent],
) -> None:
    agent = agent_factory(config="require_proof: peerpidfd\nlog: {level: debug}")
    assert outcome(agent) == "spiffe://example.org/test/me"
    assert "proof=peerpidfd" in agent.wait_for_log("caller attested")
    assert "proof is weak" not in agent.log


def test_a_reaped_peer_is_gone_and_not_looked_up_by_number(
    agent_factory: Callable[..., RunningAgent],
) -> None:
    agent = agent_factory(prefix=BELOW_6_16)
    with pytest.raises((raw.ConnectionEndedError, OSError)):
        outcome(agent)
    assert "exited before its connection was accepted" in agent.wait_for_log("connection refused")


def test_without_pidfs_a_process_has_no_unique_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below Linux 6.9 all pidfds share the device and the inode of anonymous descriptors."""
    pidfd = os.pidfd_open(os.getpid())
    monkeypatch.setattr(process_module, "_anonymous_device", lambda: os.fstat(pidfd).st_dev)
    handle = ProcessHandle(pidfd)
    caller = Caller(
        credentials=Credentials(pid=os.getpid(), uid=0, gid=0, groups=()),
        proof=Proof.PEERPIDFD,
        process=handle,
    )
    assert handle.inode is None
    assert caller.weaknesses == (
        "no pidfs (Linux 6.9): the process has no number that is never used again",
    )
    caller.close()


def test_the_who_command_shows_the_weaker_proof(agent_factory: Callable[..., RunningAgent]) -> None:
    path = agent_factory().directory / "who.sock"
    who = subprocess.Popen(
        [*BELOW_6_5, *command("who", "--listen", path, "--output", "json")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert who.stderr is not None
    assert who.stdout is not None
    assert "ready" in who.stderr.readline()
    with socket.socket(socket.AF_UNIX) as client:  # `who` may close it before it sends a byte
        client.connect(str(path))
        report = json.loads(who.stdout.readline())
    who.send_signal(signal.SIGTERM)
    who.communicate()
    assert report["proof"] == "pidfd_open"
    assert "no SO_PEERPIDFD (Linux 6.5)" in report["weaknesses"][0]
