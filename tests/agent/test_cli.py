"""The commands that speak to an agent, against a real one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tests.support.agent import REPOSITORY, SAFETY_SECONDS, RunningAgent, entry_for_me
from tests.support.cli import Outcome, command, vouchd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import AgentFactory

TWO_IDENTITIES = entry_for_me("/first", hint="internal", dns_names="[a.example]") + (
    f"  - {{spiffe_id: /second, selectors: ['unix:gid:{os.getgid()}']}}\n"
)
ENTRY_OF_ANOTHER_USER = "entries:\n  - {spiffe_id: /other, selectors: ['unix:uid:4294967294']}\n"


@pytest.fixture(scope="module")
def agent() -> Iterator[RunningAgent]:
    running = RunningAgent(TWO_IDENTITIES)
    yield running
    running.close()


@pytest.fixture(scope="module")
def agent_without_entry() -> Iterator[RunningAgent]:
    """An agent without an entry for this process."""
    running = RunningAgent(ENTRY_OF_ANOTHER_USER)
    yield running
    running.close()


def ask(agent: RunningAgent, *arguments: object) -> Outcome:
    return vouchd(*arguments, SPIFFE_ENDPOINT_SOCKET=agent.address)


# --- fetch ---------------------------------------------------------------------------------------


def test_fetch_x509_prints_the_svids_as_text(agent: RunningAgent) -> None:
    outcome = ask(agent, "fetch", "x509")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.index("spiffe://example.org/first") < outcome.stdout.index("/second")
    assert "internal" in outcome.stdout
    assert "a.example" in outcome.stdout
    assert re.search(r"expires at .* UTC \(in (59 minutes|1 hour)\)", outcome.stdout)
    assert "PRIVATE" not in outcome.stdout


def test_fetch_x509_prints_certificates_and_no_key_as_json(agent: RunningAgent) -> None:
    outcome = ask(agent, "fetch", "x509", "--output", "json")
    assert "PRIVATE" not in outcome.stdout
    first, second = outcome.json["svids"]
    assert (first["spiffe_id"], first["hint"]) == ("spiffe://example.org/first", "internal")
    assert second["spiffe_id"] == "spiffe://example.org/second"
    (leaf,) = x509.load_pem_x509_certificates(first["chain_pem"].encode())
    assert f"{leaf.serial_number:x}" == first["serial"]
    leaf.verify_directly_issued_by(
        x509.load_pem_x509_certificate(first["authorities"][0]["pem"].encode())
    )


def test_fetch_x509_writes_files_that_openssl_verifies(agent: RunningAgent, tmp_path: Path) -> None:
    outcome = ask(agent, "fetch", "x509", "--write", tmp_path / "id", "--output", "json")
    names = ["svid.0.key", "svid.0.pem", "bundle.0.pem", "svid.1.key", "svid.1.pem", "bundle.1.pem"]
    assert outcome.json["written"] == [str(tmp_path / "id" / name) for name in names]
    assert stat.S_IMODE((tmp_path / "id/svid.1.key").stat().st_mode) == 0o600
    subprocess.run(
        ["openssl", "verify", "-CAfile", "bundle.0.pem", "svid.0.pem"],
        cwd=tmp_path / "id",
        check=True,
        capture_output=True,
    )


def test_fetch_jwt_has_all_audiences_and_the_token_validates(agent: RunningAgent) -> None:
    arguments = ["fetch", "jwt", "-a", "one", "-a", "two", "--output", "json"]
    svids = ask(agent, *arguments).json["svids"]
    assert [svid["spiffe_id"].rpartition("/")[2] for svid in svids] == ["first", "second"]
    assert svids[0]["audience"] == ["one", "two"]
    for audience in ("one", "two"):
        valid = ask(
            agent, "validate", "jwt", "-a", audience, svids[0]["token"], "--output", "json"
        ).json
        assert valid["spiffe_id"] == "spiffe://example.org/first"
        assert isinstance(valid["claims"]["exp"], int)
    refused = ask(agent, "validate", "jwt", "-a", "three", svids[0]["token"])
    assert (refused.code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("vouchd: the token is not valid: ")
    assert svids[0]["token"] not in refused.stderr


def test_fetch_jwt_prints_the_svid_of_one_spiffe_id(agent: RunningAgent) -> None:
    wanted = "spiffe://example.org/second"
    outcome = ask(agent, "fetch", "jwt", "-a", "x", "--spiffe-id", wanted, "--output", "json")
    assert [svid["spiffe_id"] for svid in outcome.json["svids"]] == [wanted]


def test_fetch_jwt_refuses_a_spiffe_id_of_another_process(agent: RunningAgent) -> None:
    wanted = "spiffe://example.org/third"
    outcome = ask(agent, "fetch", "jwt", "-a", "x", "--spiffe-id", wanted)
    assert outcome == Outcome(
        1,
        "",
        f"vouchd: no identity issued: this process has no identity {wanted}; omit --spiffe-id to"
        " see all of its identities\n",
    )


def test_the_reason_of_a_refused_request_is_printed(agent: RunningAgent) -> None:
    outcome = ask(agent, "fetch", "jwt", "-a", " ")
    assert outcome.code == 1
    assert outcome.stderr.startswith("vouchd: the agent refused the request: audience must be")


def test_fetch_bundles_prints_x509_and_jwt_authorities(agent: RunningAgent) -> None:
    (bundle,) = ask(agent, "fetch", "bundles", "--output", "json").json["bundles"]
    assert bundle["trust_domain"] == "example.org"
    assert "BEGIN CERTIFICATE" in bundle["x509_authorities"][0]["pem"]
    assert bundle["jwt_authorities"][0]["kid"]
    assert bundle["jwt_authorities"][0]["key_type"] == "EC secp256r1"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch", "x509"],
        ["fetch", "jwt", "-a", "x"],
        ["fetch", "bundles"],
        ["watch", "x509"],
        ["validate", "jwt", "-a", "x", "a.b.c"],
    ],
)
def test_a_command_without_an_identity_prints_the_way_out(
    agent_without_entry: RunningAgent, arguments: list[str]
) -> None:
    outcome = ask(agent_without_entry, *arguments)
    assert outcome == Outcome(
        1,
        "",
        "vouchd: no identity issued: no registration entry matches this process"
        f" (uid {os.geteuid()}, gid {os.getegid()}); the agent's log has its selectors: add an"
        " entry, or ask the agent's operator\n",
    )


def test_health_needs_no_identity(agent_without_entry: RunningAgent) -> None:
    assert ask(agent_without_entry, "health") == Outcome(0, "status  SERVING\n", "")


# --- an agent that is not reachable -----------------------------------------------------------


def test_a_missing_socket_is_an_error_with_the_way_out() -> None:
    outcome = vouchd("fetch", "x509", "--socket", "/nowhere/agent.sock")
    assert outcome == Outcome(
        1,
        "",
        "vouchd: there is no socket at /nowhere/agent.sock: start the agent, or name its socket"
        " with --socket or SPIFFE_ENDPOINT_SOCKET\n",
    )


def test_a_socket_without_a_listener_is_an_error_with_the_way_out(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(short_path))
    outcome = vouchd("health", "--socket", short_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"vouchd: no process listens on {short_path}: start the agent")


def test_a_path_that_is_no_socket_is_an_error_with_the_way_out(short_path: Path) -> None:
    short_path.write_text("")
    outcome = vouchd("health", "--socket", short_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"vouchd: no process listens on {short_path}: start the agent")


def test_a_socket_path_that_is_too_long_is_an_error() -> None:
    outcome = vouchd("health", "--socket", "/x" * 100)
    assert outcome.code == 1
    assert "AF_UNIX path too long; check --socket" in outcome.stderr


def test_an_agent_that_does_not_answer_is_an_error(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(short_path))
        silent.listen()
        outcome = vouchd("health", "--socket", short_path, "--timeout", "0.3s")
    assert outcome == Outcome(
        1,
        "",
        f"vouchd: the agent at {short_path} did not answer within 0.3 s; see its log, or raise"
        " --timeout\n",
    )


def test_a_server_of_another_protocol_is_an_error(short_path: Path) -> None:
    with serving_bytes(short_path, b"SSH-2.0-OpenSSH\r\n"):
        outcome = vouchd("health", "--socket", short_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith("vouchd: the agent cannot answer now (UNAVAILABLE: ")
    assert outcome.stderr.count("\n") == 1


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "s"


@contextmanager
def serving_bytes(path: Path, content: bytes) -> Iterator[None]:
    """A server that sends the same bytes on each connection and closes it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.sendall(content)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


# --- watch ---------------------------------------------------------------------------------------


class Watching:
    """`vouchd watch x509` in a process of its own."""

    def __init__(self, agent: RunningAgent) -> None:
        self.process = subprocess.Popen(
            command("watch", "x509", "--output", "json"),
            cwd=REPOSITORY,
            env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": agent.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def serial(self) -> str:
        """The serial of the first SVID in the next update."""
        assert self.process.stdout is not None
        return str(json.loads(self.process.stdout.readline())["svids"][0]["serial"])

    def error_line(self) -> str:
        """The next line on stderr."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=SAFETY_SECONDS)
        return self.process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_exits_with_0_after_a_signal(agent: RunningAgent, number: signal.Signals) -> None:
    watching = Watching(agent)
    assert watching.serial()
    assert watching.end(number) == (0, "")


def test_watch_reconnects_after_a_restart_of_the_agent(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    watching = Watching(agent)
    before = watching.serial()
    agent.stop()
    error_line = watching.error_line()
    assert error_line.startswith("vouchd: ")
    assert "; trying again in 0.2 s" in error_line
    agent.start()
    assert watching.serial() == before, "the restarted agent serves the same SVID"
    assert watching.end(signal.SIGTERM)[0] == 0


def test_watch_prints_a_renewal(agent_factory: AgentFactory) -> None:
    agent = agent_factory(entry_for_me(x509_svid_ttl="2s"))
    watching = Watching(agent)
    assert watching.serial() != watching.serial()
    watching.end(signal.SIGTERM)


# --- run -----------------------------------------------------------------------------------------


def test_run_prints_its_socket_and_stops_on_sigterm(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    assert f"vouchd ready on unix://{agent.socket}\n" in agent.log
    assert agent.stop() == 0
    assert not agent.socket.exists()


def test_a_second_agent_does_not_start(agent: RunningAgent) -> None:
    outcome = vouchd("run", "-c", agent.config)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("vouchd: another agent ")
    assert outcome.stderr.count("\n") == 1


def test_an_agent_with_invalid_entries_does_not_start(agent: RunningAgent) -> None:
    wrong = agent.directory / "wrong.yaml"
    wrong.write_text("entries:\n  - {spiffe_id: /x}\n  - {spiffe_id: y}\n")
    config = agent.directory / "second.yaml"
    config.write_text(
        "trust_domain: example.org\ndata_dir: d2\nsocket_path: s2\nentries: [wrong.yaml]\n"
    )
    outcome = vouchd("run", "-c", config)
    assert outcome.code == 2
    assert [line.split(": ")[0].rpartition(":")[0] for line in outcome.stderr.splitlines()] == [
        f"{wrong}:2",
        f"{wrong}:3",
        f"{wrong}:3",
    ]
