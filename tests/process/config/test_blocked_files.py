"""A process that waits for a hung file system can still end."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agent import REPOSITORY

# Opening a FIFO without a writer blocks, as every operation on a hung mount does.
SCRIPT = """if True:
    import asyncio, os, sys
    from contextlib import suppress
    from pathlib import Path
    from agent.config.daemon_thread import run_in_daemon_thread
    from agent.config.watch import FileWatch

    fifo = Path(sys.argv[2])
    os.mkfifo(fifo)

    async def main():
        waiting = {
            "watch": FileWatch([fifo.parent], None, look=lambda paths: open(fifo)).start,
            "load": lambda: run_in_daemon_thread(lambda: open(fifo)),
        }[sys.argv[1]]
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await waiting()
        print("ending")

    asyncio.run(main())
"""


@pytest.mark.parametrize("work", ["watch", "load"])
def test_process_ends_while_a_file_operation_blocks(tmp_path: Path, work: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, work, tmp_path / "fifo"],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
        cwd=REPOSITORY,
    )
    assert ended.stdout == b"ending\n"


def test_watch_starts_no_other_program(tmp_path: Path) -> None:
    """A hardened unit may not execute programs, such as ldconfig(8) to find the C library."""
    script = """if True:
        import sys

        def refuse(event, _arguments):
            if event in {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.system"}:
                raise RuntimeError(event)

        sys.addaudithook(refuse)
        from pathlib import Path
        from agent.config.inotify import Directories
        Directories().follow([Path(sys.argv[1])])
    """
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, cwd=REPOSITORY)
