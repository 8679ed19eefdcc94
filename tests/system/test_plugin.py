"""A third-party attestor, installed by pip from a wheel, in a real agent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.pb import workloadapi_pb2 as pb
from tests.support import raw
from tests.support.agent import RunningAgent
from tests.support.plugin import install

MODULE = """
from attestors.api import AttestorError, Findings, Options, Selector


class DeskOptions(Options):
    floor: int


class DeskAttestor:
    name = "desk"
    Options = DeskOptions
    timeout = 5.0

    def __init__(self, options, context):
        self.options = options
        context.log("hello from the desk")

    async def attest(self, workload):
        if self.options.floor == 13:
            raise AttestorError("there is no floor 13")
        comm = workload.read("comm").decode().strip()
        return Findings(frozenset({
            Selector("desk", f"floor:{self.options.floor}"), Selector("desk", f"comm:{comm}"),
        }))

    async def close(self):
        pass
"""
POINTS = {"desk": "desk:DeskAttestor", "unix": "desk:DeskAttestor"}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the installed package."""
    return install(tmp_path_factory.mktemp("desk"), "desk", MODULE, POINTS)


def entries() -> str:
    return (
        f"entries:\n  - {{spiffe_id: /desk, selectors: [unix:uid:{os.getuid()}, desk:floor:7]}}\n"
    )


def start(
    agent_factory: Callable[..., RunningAgent], installed: Path, text: str, floor: int = 7
) -> RunningAgent:
    return agent_factory(
        text,
        config=f"attestors: {{unix: {{}}, desk: {{floor: {floor}}}}}",
        env={"PYTHONPATH": str(installed)},
    )


def fetch(agent: RunningAgent) -> raw.RawCall:
    client = raw.connect(str(agent.socket))
    try:
        stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
        while not (client.calls[stream].messages or client.calls[stream].status is not None):
            client.read()
        return client.calls[stream]
    finally:
        client.sock.close()


def test_selectors_of_a_plugin_match_entries(
    agent_factory: Callable[..., RunningAgent], installed: Path
) -> None:
    agent = start(agent_factory, installed, entries())
    [message] = fetch(agent).messages
    [svid] = pb.X509SVIDResponse.FromString(message).svids
    assert svid.spiffe_id == "spiffe://example.org/desk"
    assert "hello from the desk" in agent.log
    assert "attestor=desk" in agent.log


def test_plugin_cannot_replace_a_built_in_attestor(
    agent_factory: Callable[..., RunningAgent], installed: Path
) -> None:
    """The package has an entry point `unix` too; the entry needs a uid of the built-in attestor."""
    agent = start(agent_factory, installed, entries())
    assert fetch(agent).messages


def test_failed_plugin_makes_the_caller_try_again(
    agent_factory: Callable[..., RunningAgent], installed: Path
) -> None:
    agent = start(agent_factory, installed, entries(), floor=13)
    assert fetch(agent).status == raw.UNAVAILABLE
    assert "there is no floor 13" in agent.wait_for_log("attestor failed")


def test_failed_plugin_does_not_affect_entries_without_its_selectors(
    agent_factory: Callable[..., RunningAgent], installed: Path
) -> None:
    plain = f"  - {{spiffe_id: /plain, selectors: [unix:uid:{os.getuid()}]}}\n"
    agent = start(agent_factory, installed, entries() + plain, floor=13)
    [message] = fetch(agent).messages
    [svid] = pb.X509SVIDResponse.FromString(message).svids
    assert svid.spiffe_id == "spiffe://example.org/plain"


def test_plugin_that_cannot_be_loaded_is_named(
    agent_factory: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    package = tmp_path / "bad-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vouchd.attestors]\nbad = nowhere_to_be_found:X\n")
    agent = agent_factory()
    agent.config.write_text(agent.config.read_text() + "attestors: {unix: {}, bad: {}}\n")
    checked = subprocess.run(
        [sys.executable, "-m", "agent", "check", "-c", agent.config],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 1
    assert "nowhere_to_be_found" in checked.stderr
    assert "repair its package, or leave it out" in checked.stderr


def test_wrong_option_of_a_plugin_is_reported_with_line_and_column(
    agent_factory: Callable[..., RunningAgent], installed: Path
) -> None:
    agent = agent_factory()
    agent.config.write_text(agent.config.read_text() + "attestors:\n  desk: {flor: 7}\n")
    checked = subprocess.run(
        [sys.executable, "-m", "agent", "check", "-c", agent.config],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 2
    assert f"{agent.config}:8:10: " in checked.stdout + checked.stderr
    assert "floor" in checked.stdout + checked.stderr
