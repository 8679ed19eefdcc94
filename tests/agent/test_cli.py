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

from tests.support.agent import PATIENCE_SECONDS, REPOSITORY, RunningAgent, entry_for_me
from tests.support.cli import Outcome, command, vouchd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import AgentFactory

TWO_IDENTITIES = entry_for_me("/first", hint="internal", dns_names="[a.example]") + (
    f"  - {{spiffe_id: /second, selectors: ['unix:gid:{os.getgid()}']}}\n"
)
NOBODYS = "entries:\n  - {spiffe_id: /other, selectors: ['unix:uid:4294967294']}\n"


@pytest.fixture(scope="module")
def agent() -> Iterator[RunningAgent]:
    running = RunningAgent(TWO_IDENTITIES)
    yield running
    running.close()


@pytest.fixture(scope="module")
def closed_agent() -> Iterator[RunningAgent]:
    """An agent that has nothing for us."""
    running = RunningAgent(NOBODYS)
    yield running
    running.close()


def ask(agent: RunningAgent, *arguments: object) -> Outcome:
    return vouchd(*arguments, SPIFFE_ENDPOINT_SOCKET=agent.address)


# --- fetch ---------------------------------------------------------------------------------------


def test_fetch_x509_tells_people_what_they_have(agent: RunningAgent) -> None:
    outcome = ask(agent, "fetch", "x509")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.index("spiffe://example.org/first") < outcome.stdout.index("/second")
    assert "internal" in outcome.stdout
    assert "a.example" in outcome.stdout
    assert re.search(r"valid until .* UTC \(in (59 minutes|1 hour)\)", outcome.stdout)
    assert "PRIVATE" not in outcome.stdout


def test_fetch_x509_gives_programs_certificates_and_no_key(agent: RunningAgent) -> None:
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


def test_fetch_x509_writes_files_that_openssl_takes(agent: RunningAgent, tmp_path: Path) -> None:
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


def test_fetch_jwt_is_for_all_audiences_and_validates(agent: RunningAgent) -> None:
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


def test_fetch_jwt_of_one_identity(agent: RunningAgent) -> None:
    wanted = "spiffe://example.org/second"
    outcome = ask(agent, "fetch", "jwt", "-a", "x", "--spiffe-id", wanted, "--output", "json")
    assert [svid["spiffe_id"] for svid in outcome.json["svids"]] == [wanted]


def test_fetch_jwt_of_somebody_elses_identity(agent: RunningAgent) -> None:
    wanted = "spiffe://example.org/third"
    outcome = ask(agent, "fetch", "jwt", "-a", "x", "--spiffe-id", wanted)
    assert outcome == Outcome(
        1,
        "",
        f"vouchd: no identity issued: {wanted} is none of this process's identities; leave out"
        " --spiffe-id to see which ones it has\n",
    )


def test_a_request_that_the_agent_refuses_is_told_in_its_words(agent: RunningAgent) -> None:
    outcome = ask(agent, "fetch", "jwt", "-a", " ")
    assert outcome.code == 1
    assert outcome.stderr.startswith("vouchd: the agent refused the request: audience must be")


def test_fetch_bundles_shows_both_kinds(agent: RunningAgent) -> None:
    (bundle,) = ask(agent, "fetch", "bundles", "--output", "json").json["bundles"]
    assert bundle["trust_domain"] == "example.org"
    assert "BEGIN CERTIFICATE" in bundle["x509_authorities"][0]["pem"]
    assert bundle["jwt_authorities"][0]["key_id"]
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
def test_without_an_identity_one_sentence_says_what_to_do(
    closed_agent: RunningAgent, arguments: list[str]
) -> None:
    outcome = ask(closed_agent, *arguments)
    assert outcome == Outcome(
        1,
        "",
        "vouchd: no identity issued: no registration entry matches this process"
        f" (uid {os.geteuid()}, gid {os.getegid()}); add one, or ask the agent's operator, whose"
        " log says what was found out about the process\n",
    )


def test_health_needs_no_identity(closed_agent: RunningAgent) -> None:
    assert ask(closed_agent, "health") == Outcome(0, "status  SERVING\n", "")


# --- an agent that cannot be reached -------------------------------------------------------------


def test_no_socket() -> None:
    outcome = vouchd("fetch", "x509", "--socket", "/nowhere/agent.sock")
    assert outcome == Outcome(
        1,
        "",
        "vouchd: there is no socket at /nowhere/agent.sock: start the agent, or name its socket"
        " with --socket or SPIFFE_ENDPOINT_SOCKET\n",
    )


def test_a_socket_that_nobody_listens_on(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(short_path))
    outcome = vouchd("health", "--socket", short_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"vouchd: nobody listens on {short_path}: start the agent")


def test_a_path_that_is_no_socket(short_path: Path) -> None:
    short_path.write_text("")
    outcome = vouchd("health", "--socket", short_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"vouchd: nobody listens on {short_path}: start the agent")


def test_a_path_that_is_too_long() -> None:
    outcome = vouchd("health", "--socket", "/x" * 100)
    assert outcome.code == 1
    assert "AF_UNIX path too long; check --socket" in outcome.stderr


def test_something_that_does_not_answer(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(short_path))
        silent.listen()
        outcome = vouchd("health", "--socket", short_path, "--timeout", "0.3s")
    assert outcome == Outcome(
        1,
        "",
        f"vouchd: the agent at {short_path} did not answer within 0.3 s; look at its log, or give"
        " it longer with --timeout\n",
    )


def test_something_that_speaks_another_language(short_path: Path) -> None:
    with chatting(short_path, b"SSH-2.0-OpenSSH\r\n"):
        outcome = vouchd("health", "--socket", short_path)
    assert outcome.code == 1
    assert outcome.stderr.startswith("vouchd: the agent cannot answer now (UNAVAILABLE: ")
    assert outcome.stderr.count("\n") == 1


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "s"


@contextmanager
def chatting(path: Path, words: bytes) -> Iterator[None]:
    """Says the same to everybody and hangs up."""
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
                connection.sendall(words)

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
        """Of the first SVID in the next update."""
        assert self.process.stdout is not None
        return str(json.loads(self.process.stdout.readline())["svids"][0]["serial"])

    def complaint(self) -> str:
        """The next line on stderr."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_ends_in_order_when_it_is_told_to(
    agent: RunningAgent, number: signal.Signals
) -> None:
    watching = Watching(agent)
    assert watching.serial()
    assert watching.end(number) == (0, "")


def test_watch_survives_a_restart_of_the_agent(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    watching = Watching(agent)
    before = watching.serial()
    agent.stop()
    complaint = watching.complaint()
    assert complaint.startswith("vouchd: ")
    assert "; trying again in 0.2 s" in complaint
    agent.start()
    assert watching.serial() == before, "the SVID outlasts the agent"
    assert watching.end(signal.SIGTERM)[0] == 0


def test_watch_shows_a_renewal(agent_factory: AgentFactory) -> None:
    agent = agent_factory(entry_for_me(x509_svid_ttl="2s"))
    watching = Watching(agent)
    assert watching.serial() != watching.serial()
    watching.end(signal.SIGTERM)


# --- run -----------------------------------------------------------------------------------------


def test_run_says_where_it_is_ready_and_ends_in_order(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    assert f"vouchd ready on unix://{agent.socket}\n" in agent.log
    assert agent.stop() == 0
    assert not agent.socket.exists()


def test_a_second_agent_is_refused_in_one_sentence(agent: RunningAgent) -> None:
    outcome = vouchd("run", "-c", agent.config)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("vouchd: another agent ")
    assert outcome.stderr.count("\n") == 1


def test_an_agent_whose_entries_are_wrong_does_not_start(agent: RunningAgent) -> None:
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
