"""The docker attestor and an engine that the test decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from attestors.api import AttestorContext, AttestorError
from attestors.docker import DockerAttestor, DockerOptions
from tests.support.engine_server import EngineServer, kernel_says
from tests.support.findings import closing
from tests.support.workload import Workload

ID = "a" * 64
OTHER = "b" * 64
CGROUP = f"0::/system.slice/docker-{ID}.scope\n".encode()


def caller(cgroup: bytes = CGROUP, **fields: Any) -> Workload:
    return Workload(cgroup, **fields)


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    """An engine; the kernel has the first process of every container in CGROUP."""
    with kernel_says(CGROUP):
        async with EngineServer() as server:
            yield server


def attestor(engine: EngineServer) -> AbstractAsyncContextManager[DockerAttestor]:
    options = DockerOptions(
        socket=str(engine.path), podman_socket=str(engine.directory / "none.sock")
    )
    return closing(DockerAttestor(options, AttestorContext()))


async def fails(docker: DockerAttestor, process: Workload | None = None) -> str:
    with pytest.raises(AttestorError) as caught:
        await docker.attest(process or caller())
    return str(caught.value)
