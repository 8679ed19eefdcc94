"""The audit trail of a running agent."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.client.admin import AdminClient
from agent.client.workload import WorkloadClient
from agent.errors import NoIdentityError
from agent.kernel.process import ProcessHandle
from tests.conftest import AgentFactory
from tests.support.agent import SAFETY_SECONDS, RunningAgent
from tests.support.cli import vouchd
from tests.support.streams import Stream

OF_ANOTHER_USER = "entries: [{spiffe_id: /nobody, selectors: ['unix:uid:4294967294']}]"


def audited(agent: RunningAgent) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in agent.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["level"] == "audit"]


def test_an_audit_line_names_the_process_and_its_svid(agent_factory: AgentFactory) -> None:
    """At every log level. The digest is that of the selectors that `explain` shows."""
    agent = agent_factory(config="log: {level: error, format: json}")
    with Stream(agent.socket) as stream:
        stream.next()
        explained = vouchd("explain", os.getpid(), "-c", agent.config, "--output", "json").json
    with WorkloadClient(agent.socket, SAFETY_SECONDS) as client:
        client.fetch_jwt_svids(["someone"])
    agent.wait_for_log('"jwt"')
    certificate, token = audited(agent)
    me = ProcessHandle(os.pidfd_open(os.getpid()))
    me.close()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    selectors = "".join(f"{each}\n" for each in explained["verdict"]["selectors"])
    caller = {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "executable": str(Path("/proc/self/exe").readlink()),
        "selectors_sha256": hashlib.sha256(selectors.encode()).hexdigest(),
        **({"process_key": f"{boot}/{me.inode}"} if me.inode else {}),
    }
    for line, kind in ((certificate, "x509"), (token, "jwt")):
        assert line.items() >= caller.items()
        assert line["event"] == "svid issued"
        assert (line["kind"], line["spiffe_id"]) == (kind, "spiffe://example.org/test/me")
    assert token["audience"] == ["someone"]
    assert "not connected" not in explained["process"]["proof"]


def test_an_audit_line_names_the_refused_caller_and_the_reason(agent_factory: AgentFactory) -> None:
    agent = agent_factory(OF_ANOTHER_USER, config="log: {level: error, format: json}")
    with (
        WorkloadClient(agent.socket, SAFETY_SECONDS) as client,
        pytest.raises(NoIdentityError),
    ):
        client.fetch_x509_svids()
    agent.wait_for_log("call refused")
    [line] = audited(agent)
    assert line["event"] == "call refused"
    assert line["reason"] == "no registration entry matches the selectors of this process"
    assert (line["code"], line["method"]) == ("PERMISSION_DENIED", "FetchX509SVID")
    assert (line["pid"], line["uid"]) == (os.getpid(), os.getuid())
    assert line["selectors_sha256"]


def test_sighup_changes_the_level_format_and_audit_of_the_log(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    text = agent.config.read_text()
    with Stream(agent.socket) as stream:
        stream.next()
        agent.wait_for_log("svid issued")
        assert "caller attested" not in agent.log
        agent.config.write_text(f"{text}log: {{level: debug, format: json, audit: false}}\n")
        agent.hang_up()
        assert json.loads(agent.wait_for_log("settings reloaded"))["changed"] == ["log"]
        seen = len(agent.log)
        with AdminClient(agent.admin_socket, SAFETY_SECONDS) as admin:
            admin.prepare_authority("x509")
        stream.next()
    agent.wait_for_log("caller attested")
    assert "svid issued" not in agent.log[seen:]
