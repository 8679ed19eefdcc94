"""Build the clients of other projects: their tests wait for the build of the one that they run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.interop.foreign import ForeignClient
from tests.support.agent import REPOSITORY

HERE = Path(__file__).parent
SHOWN_CHARACTERS = 2000


def built(name: str) -> Path:
    """Build a client unless it is built, and return its directory.

    A developer may lack a toolchain or a package registry: the tests skip. In CI they fail.
    """
    done = subprocess.run(
        [HERE / "build", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        skip_or_fail(f"tests/interop/build {name} failed: {done.stdout[-SHOWN_CHARACTERS:]}")
    return REPOSITORY / "build" / "interop" / name


def skip_or_fail(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def python_client(program: str) -> ForeignClient:
    interpreter = built("python") / "libraries" / "bin" / "python"
    return ForeignClient(argv=[interpreter, HERE / "python" / program])


@pytest.fixture(scope="session")
def py_spiffe() -> ForeignClient:
    return python_client("py_spiffe.py")


@pytest.fixture(scope="session")
def defakto() -> ForeignClient:
    return python_client("defakto.py")


@pytest.fixture(scope="session")
def reflecting() -> ForeignClient:
    return python_client("reflecting.py")


@pytest.fixture(scope="session")
def go_spiffe() -> ForeignClient:
    return ForeignClient(argv=[built("go") / "client"])


@pytest.fixture(scope="session")
def grpc_js() -> ForeignClient:
    proto = REPOSITORY / "proto" / "workloadapi.proto"
    return ForeignClient(argv=["node", built("node") / "client.js", proto])


@pytest.fixture(scope="session")
def java_spiffe() -> ForeignClient:
    directory = built("java")
    classes = f"{directory}:{directory}/libraries/*"
    # A JVM that ends soon starts faster with the serial collector and the first compiler only.
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classes]
    return ForeignClient(argv=["java", *options, "Client"])


@pytest.fixture(scope="session")
def rust_spiffe() -> ForeignClient:
    return ForeignClient(argv=[built("rust") / "client"])


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    return built("grpcurl") / "client"
