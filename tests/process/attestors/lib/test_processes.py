"""A container's first process that exits while the attestor reads it."""

from __future__ import annotations

import subprocess
import sys

from attestors.lib.processes import read_at
from tests.support.engine_caller import ID, attestor, fails
from tests.support.engine_server import EngineServer


async def test_first_process_that_exits_during_the_reads_is_refused(engine: EngineServer) -> None:
    """The reads may be of the next process with its PID."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    engine.add(ID, pid=child.pid)

    def read(directory: int, name: str) -> bytes:
        content = read_at(directory, name)
        if name == "stat":
            child.communicate(b"\n")
        return content

    async with attestor(engine, read=read) as docker:
        assert "names as the container's first, has exited" in await fails(docker)
