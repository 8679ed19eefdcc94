"""The docker attestor, an engine, and a process in a container of that engine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from attestors.api import AttestorContext, AttestorError
from attestors.docker import DockerAttestor, DockerOptions
from tests.support.engine_server import EngineServer, containers
from tests.support.findings import closing
from tests.support.workload import Workload

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

ID = "a" * 64
OTHER = "b" * 64
CGROUP = f"0::/system.slice/docker-{ID}.scope\n".encode()


def caller(cgroup: bytes = CGROUP, **fields: Any) -> Workload:
    """Return a process in this cgroup."""
    return Workload(cgroup, **fields)


def attestor(
    engine: EngineServer, cgroup: bytes = CGROUP, **options: Any
) -> AbstractAsyncContextManager[DockerAttestor]:
    """Return the attestor; the first process of each container of the engine is in `cgroup`."""
    sockets = DockerOptions(
        socket=str(engine.path), podman_socket=str(engine.directory / "none.sock")
    )
    of_engine = partial(containers, cgroup=cgroup, **options)
    return closing(DockerAttestor(sockets, AttestorContext(), of_engine))


async def fails(docker: DockerAttestor, process: Workload | None = None) -> str:
    """Attest, require an AttestorError and return its text."""
    with pytest.raises(AttestorError) as caught:
        await docker.attest(process or caller())
    return str(caught.value)
