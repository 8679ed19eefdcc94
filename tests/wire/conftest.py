"""The servers of the conformance tests of the transport: vouchd, and grpcio as control."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.agent import REPOSITORY, SAFETY_SECONDS, RunningAgent

# The tests break rules all the time, as fast as they can.
CONFIG = "limits: {lockout: false, requests_per_second: 100000}"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    name: str
    path: str

    @property
    def is_control(self) -> bool:
        """Whether it is the grpcio server."""
        return self.name == "grpcio"


@pytest.fixture(scope="session")
def vouchd() -> Iterator[Server]:
    agent = RunningAgent(config=CONFIG)
    try:
        yield Server("vouchd", str(agent.socket))
    finally:
        agent.close()


@pytest.fixture(scope="session")
def grpcio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("control") / "grpcio.sock"
    command = [sys.executable, "-m", "tests.support.grpc_control", str(path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Server("grpcio", str(path))
        finally:
            process.terminate()
            process.wait(SAFETY_SECONDS)


@pytest.fixture(scope="session", params=["vouchd", "grpcio"])
def server(request: pytest.FixtureRequest) -> Server:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found
