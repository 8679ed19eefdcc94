"""The commands of the admin API, against a real agent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from agent.client.admin import AdminClient
from agent.errors import RequestError
from tests.conftest import AgentFactory
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, RunningAgent
from tests.support.cli import Outcome, command, vouchd
from tests.support.streams import Stream, issuer_of

UID, GID = os.getuid(), os.getgid()
ENTRIES = f"""entries:
  - {{id: mine, spiffe_id: /mine, selectors: ['unix:uid:{UID}']}}
  - {{id: near, spiffe_id: /near, selectors: ['unix:uid:{UID}', 'unix:path:/usr/bin/nothing']}}
  - {{id: far, spiffe_id: /far, selectors: ['unix:uid:4294967294']}}
"""
NOBODYS = "entries:\n  - {id: other, spiffe_id: /other, selectors: ['unix:uid:4294967294']}\n"


@pytest.fixture(scope="module")
def agent() -> Iterator[RunningAgent]:
    running = RunningAgent(ENTRIES)
    yield running
    running.close()


def ask(agent: RunningAgent, *arguments: object) -> Outcome:
    return vouchd(*arguments, "--admin-socket", agent.admin_socket)


def as_json(agent: RunningAgent, *arguments: object) -> Any:
    return ask(agent, *arguments, "--output", "json").json


# --- status --------------------------------------------------------------------------------------


def test_status_shows_authorities_entries_and_callers(agent: RunningAgent) -> None:
    with Stream(agent.socket) as stream:
        stream.next()
        found = as_json(agent, "status")
    assert found["trust_domain"] == "example.org"
    assert found["entries"]["loaded"] == 3
    assert found["attestors"] == ["unix"]
    [caller] = found["callers"]
    assert (caller["pid"], caller["uid"]) == (os.getpid(), UID)
    assert caller["spiffe_ids"] == ["spiffe://example.org/mine"]
    assert caller["streams"] == ["FetchX509SVID"]
    assert caller["since"] < caller["next_renewal"]
    kinds = {each["kind"]: each for each in found["authority"]["authorities"]}
    assert sorted(kinds) == ["jwt", "x509"]
    for authority in kinds.values():
        assert (authority["state"], authority["next_step"]) == ("active", "prepare successor")
        assert authority["since"] < authority["next_step_at"] < authority["expires_at"]
    assert "PRIVATE" not in str(found)


def test_status_prints_labels_and_values(agent: RunningAgent) -> None:
    outcome = vouchd("status", "-c", agent.config)
    assert outcome.code == 0
    assert "trust domain  example.org" in outcome.stdout
    assert "next step     prepare successor" in outcome.stdout


def test_status_watch_continues_after_a_restart_of_the_agent(agent_factory: AgentFactory) -> None:
    agent = agent_factory(ENTRIES)
    watch = subprocess.Popen(
        command("status", "--watch", "--output", "json", "--admin-socket", agent.admin_socket),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert watch.stderr is not None
    with watch.stdout, watch.stderr:
        lines = map(json.loads, watch.stdout)
        assert next(lines)["trust_domain"] == "example.org"
        agent.stop()
        assert any("no_answer" in line for line in lines)
        agent.start()
        assert any("trust_domain" in line for line in lines)
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(SAFETY_SECONDS) == 0
        assert watch.stderr.read() == ""


def test_status_metrics_prints_the_prometheus_format(agent: RunningAgent) -> None:
    outcome = ask(agent, "status", "--metrics")
    assert "vouchd_entries 3.0" in outcome.stdout
    assert "# TYPE vouchd_entries_valid gauge" in outcome.stdout


def test_the_error_about_a_missing_admin_socket_names_the_way_out(tmp_path: Path) -> None:
    outcome = vouchd("status", "--admin-socket", tmp_path / "none.sock")
    assert outcome.code == 1
    assert "there is no socket at" in outcome.stderr
    assert "admin_socket_path" in outcome.stderr


def test_a_configuration_without_an_admin_socket_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("trust_domain: example.org\n")
    outcome = vouchd("status", "-c", config)
    assert outcome.code == 2
    assert "sets no admin_socket_path" in outcome.stderr


def test_the_admin_socket_has_mode_0600(agent: RunningAgent) -> None:
    assert stat.S_IMODE(agent.admin_socket.stat().st_mode) == 0o600


# --- explain -------------------------------------------------------------------------------------


def test_explain_shows_matched_entries_and_the_nearest_others(agent: RunningAgent) -> None:
    found = as_json(agent, "explain", os.getpid())
    assert found["process"]["pid"] == os.getpid()
    assert found["process"]["proof"] == "not connected: read by PID, for display only"
    assert found["process"]["weaknesses"] == []
    [report] = found["attestors"]
    assert report["attestor"] == "unix"
    assert report["duration_seconds"] > 0
    assert f"unix:uid:{UID}" in report["selectors"]
    assert [each["entry_id"] for each in found["verdict"]["matched"]] == ["mine"]
    near = found["verdict"]["missed"][0]
    assert near["entry_id"] == "near"
    [lacking] = near["lacking"]
    assert lacking["wanted"] == "unix:path:/usr/bin/nothing"
    assert lacking["found"] == [f"unix:path:{Path('/proc/self/exe').readlink()}"]


def test_explain_of_a_connected_process_shows_its_served_svids(agent: RunningAgent) -> None:
    with Stream(agent.socket) as stream:
        stream.next()
        found = as_json(agent, "explain", os.getpid())
    assert found["process"]["proof"] in {"peerpidfd", "pidfd_open"}
    assert found["attestors"][0]["remembered"] is True
    [served] = found["served"]
    assert served["spiffe_ids"] == ["spiffe://example.org/mine"]


def test_explain_of_a_refused_process_fails_and_shows_its_refusals(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(NOBODYS, config="log: {format: json}")
    assert vouchd("fetch", "x509", "--socket", agent.socket).code == 1
    outcome = ask(agent, "explain", os.getpid())
    assert outcome.code == 1
    assert "gets no identity; the reasons are above" in outcome.stderr
    assert "wanted  unix:uid:4294967294" in outcome.stdout
    assert f"found   unix:uid:{UID}" in outcome.stdout
    assert "no registration entry matches" in outcome.stdout
    line = agent.wait_for_log("no identity issued")
    assert f'"wanted": "unix:uid:4294967294", "found": ["unix:uid:{UID}"]' in line


def test_repeated_denials_are_suppressed_in_the_log(agent_factory: AgentFactory) -> None:
    agent = agent_factory(NOBODYS)
    for _ in range(8):
        assert vouchd("fetch", "x509", "--socket", agent.socket).code == 1
    assert agent.log.count("no identity issued") <= 6


def test_explain_without_a_process_is_an_error(agent: RunningAgent) -> None:
    outcome = ask(agent, "explain", 2**22)
    assert outcome.code == 1
    assert "there is no process 4194304" in outcome.stderr
    for text in ("abc", "0", "99999999999", "1.5"):
        outcome = ask(agent, "explain", text)
        assert (outcome.code, outcome.stdout) == (2, "")
        assert f"'{text}' is not a PID, such as ps shows" in outcome.stderr


def test_explain_escapes_an_executable_name(agent: RunningAgent, tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/\xff\xfe\n\x1b[2J"
    shutil.copy(b"/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            outcome = ask(agent, "explain", process.pid)
            found = as_json(agent, "explain", process.pid)
        finally:
            process.kill()
    assert outcome.code == 0, outcome.stderr
    assert "\x1b" not in outcome.stdout
    assert "\\udcff" in found["process"]["executable"]


def test_explain_works_for_a_process_of_another_user(agent: RunningAgent) -> None:
    outcome = ask(agent, "explain", 1)
    assert outcome.code in {0, 1}
    assert "process" in outcome.stdout
    assert "defect" not in outcome.stderr
    assert "internal" not in outcome.stderr


def test_the_agent_socket_given_as_admin_socket_is_an_error(agent: RunningAgent) -> None:
    outcome = vouchd("status", "--admin-socket", agent.socket)
    assert outcome.code == 1
    assert f"{agent.socket} is not the admin socket of an agent" in outcome.stderr


# --- entries -------------------------------------------------------------------------------------


def test_match_by_pid_needs_no_agent(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("trust_domain: example.org\nentries: [e.yaml]\n")
    (tmp_path / "e.yaml").write_text(
        ENTRIES + "  - {id: user, spiffe_id: '/user/{unix:uid}', selectors: ['unix:gid:"
        f"{GID}']}}\n  - {{id: none, spiffe_id: '/{{unix:supplementary_gid}}', selectors: "
        f"['unix:uid:{UID}']}}\n"
    )
    outcome = vouchd("entries", "match", "-c", config, "--pid", os.getpid(), "--output", "json")
    found = outcome.json
    ids = [each["spiffe_id"] for each in found["matched"]]
    assert ids[:2] == ["spiffe://example.org/mine", f"spiffe://example.org/user/{UID}"]
    assert f"unix:uid:{UID}" in found["selectors"]


def test_match_takes_either_selectors_or_a_pid(agent: RunningAgent) -> None:
    for arguments in ([], ["unix:uid:1", "--pid", "1"]):
        outcome = vouchd("entries", "match", "-c", agent.config, *arguments)
        assert outcome.code == 2
        assert "either selectors" in outcome.stderr


def test_diff_shows_gained_and_lost_identities(agent: RunningAgent, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(
        f"trust_domain: example.org\nentries: [e.yaml]\nadmin_socket_path: {agent.admin_socket}\n"
    )
    (tmp_path / "e.yaml").write_text(ENTRIES.replace("/mine", "/yours"))
    with Stream(agent.socket) as stream:
        stream.next()
        found = vouchd("entries", "diff", "-c", new, "--output", "json").json
        [changed] = found["changed"]
        assert changed["gained"] == ["spiffe://example.org/yours"]
        assert changed["lost"] == ["spiffe://example.org/mine"]
        assert changed["pid"] == os.getpid()
        same = vouchd("entries", "diff", "-c", agent.config, "--output", "json").json
        assert (same["changed"], same["unchanged"]) == ([], 1)
        assert stream.is_silent(), "diff changes nothing"


def test_diff_prints_the_problems_of_the_files(agent: RunningAgent, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    new.write_text("trust_domain: example.org\nentries: [e.yaml]\n")
    (tmp_path / "e.yaml").write_text("entries: [{spiffe_id: x}]\n")
    outcome = vouchd("entries", "diff", "-c", new, "--admin-socket", agent.admin_socket)
    assert outcome.code == 2
    assert f"{tmp_path}/e.yaml:1:11: selectors is missing" in outcome.stderr


def test_import_prints_entries_and_the_dropped_parts(agent: RunningAgent, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(
        '{"entries": [{"id": "x", "spiffe_id": {"trust_domain": "example.org", "path": "/x"},'
        ' "selectors": [{"type": "unix", "value": "uid:7"}], "downstream": true}]}'
    )
    outcome = vouchd("entries", "import", "-c", agent.config, old)
    assert outcome.code == 0
    assert "entries: []" in outcome.stdout
    assert outcome.stderr.startswith("vouchd: x is left out: it is for a nested server")


# --- authority -----------------------------------------------------------------------------------


@pytest.fixture
def fresh(agent_factory: AgentFactory) -> RunningAgent:
    return agent_factory(ENTRIES)


def states(agent: RunningAgent, kind: str) -> list[str]:
    found = as_json(agent, "authority", "show")["authorities"]
    return [each["state"] for each in found if each["kind"] == kind]


def test_an_authority_is_replaced_while_a_stream_is_open(fresh: RunningAgent) -> None:
    with Stream(fresh.socket) as stream:
        first = stream.next()
        [compromised] = [
            each["authority_id"]
            for each in as_json(fresh, "authority", "show")["authorities"]
            if each["kind"] == "x509"
        ]
        prepared = as_json(fresh, "authority", "prepare", "x509")
        assert prepared["state"] == "prepared"
        both = stream.next()
        assert [svid.chain_der for svid in both.svids] == [svid.chain_der for svid in first.svids]
        assert len(x509_of(both.svids[0].bundle_der)) == 2, "in the bundle before it signs"
        assert (
            as_json(fresh, "authority", "activate", "x509")["authority_id"]
            == prepared["authority_id"]
        )
        assert states(fresh, "x509") == ["retired", "active"]
        assert stream.is_silent(), "activation changes no SVID and no bundle"
        assert as_json(fresh, "authority", "taint", compromised)["state"] == "tainted"
        replaced = stream.next()
        assert issuer_of(replaced) != issuer_of(first)
        assert as_json(fresh, "authority", "revoke", compromised)["bundle_sequence"] == 3
        last = stream.next()
        assert len(x509_of(last.svids[0].bundle_der)) == 1
        assert issuer_of(last) == x509_of(last.svids[0].bundle_der)[0].subject
    line = fresh.wait_for_log("admin command")
    assert f"uid={UID}" in line
    assert "method=PrepareAuthority" in line


def x509_of(der: bytes) -> list[x509.Certificate]:
    """Concatenated certificates, as bundles are."""
    found = []
    while der:
        length = int.from_bytes(der[2:4], "big") + 4
        found.append(x509.load_der_x509_certificate(der[:length]))
        der = der[length:]
    return found


def test_tokens_of_a_tainted_key_are_not_issued_again(fresh: RunningAgent) -> None:
    def token() -> str:
        answer = vouchd("fetch", "jwt", "-a", "x", "--socket", fresh.socket, "--output", "json")
        found: str = answer.json["svids"][0]["token"]
        return found

    first = token()
    assert token() == first, "cached for half of its lifetime"
    [compromised] = [
        each["authority_id"]
        for each in as_json(fresh, "authority", "show")["authorities"]
        if each["kind"] == "jwt"
    ]
    as_json(fresh, "authority", "prepare", "jwt")
    as_json(fresh, "authority", "activate", "jwt")
    assert token() == first
    as_json(fresh, "authority", "taint", compromised)
    second = token()
    assert second != first
    valid = vouchd("validate", "jwt", "-a", "x", first, "--socket", fresh.socket)
    assert valid.code == 0, "in the bundle until it is revoked"
    as_json(fresh, "authority", "revoke", compromised)
    assert vouchd("validate", "jwt", "-a", "x", first, "--socket", fresh.socket).code == 1
    assert vouchd("validate", "jwt", "-a", "x", second, "--socket", fresh.socket).code == 0


def test_the_error_about_an_impossible_step_names_the_way_out(fresh: RunningAgent) -> None:
    outcome = ask(fresh, "authority", "activate", "jwt")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == "vouchd: no jwt authority is prepared: prepare one first\n"
    assert ask(fresh, "authority", "taint", "x").stderr == "vouchd: no authority has the ID 'x'\n"
    assert ask(fresh, "authority", "prepare", "pgp").code == 2
    with (
        AdminClient(fresh.admin_socket, SAFETY_SECONDS) as client,
        pytest.raises(RequestError, match="'pgp' is no kind of authority"),
    ):
        client.prepare_authority("pgp")


def test_a_manual_rotation_survives_a_restart(fresh: RunningAgent) -> None:
    as_json(fresh, "authority", "prepare", "x509")
    as_json(fresh, "authority", "activate", "x509")
    before = as_json(fresh, "authority", "show")
    fresh.kill()
    fresh.start()
    assert as_json(fresh, "authority", "show") == before
