"""Servers in a given situation, started by the implementer's control command (README.md)."""

from __future__ import annotations

import json
import select
import shlex
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import pytest

from .wire import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A server starts in less, or it hangs.
START_SECONDS = 60.0
STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Situation:
    """A server, and what this process may expect of it."""

    endpoint: Endpoint
    spiffe_ids: Sequence[str] = ()
    """This process's identities in order; empty if they are not known."""
    pid: int | None = None
    """The server's process, if known."""
    _steps: IO[str] | None = field(default=None, repr=False)

    def next_step(self) -> None:
        """Let the control command take the situation's next step."""
        assert self._steps is not None
        self._steps.write("next\n")
        self._steps.flush()


@dataclass(frozen=True, slots=True)
class Control:
    """The control command; without one, every test that needs a situation is skipped."""

    command: str | None

    @contextmanager
    def situation(self, name: str) -> Iterator[Situation]:
        """Start a server in this situation and stop it at the end of the block."""
        if self.command is None:
            pytest.skip(f"no --control command starts a server in the situation {name!r}")
        with subprocess.Popen(
            [*shlex.split(self.command), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                answer = _first_line(process.stdout, name)
                if "unsupported" in answer:
                    pytest.skip(f"situation {name!r}: {answer['unsupported']}")
                yield Situation(
                    Endpoint.parse(answer["socket"]),
                    answer.get("spiffe_ids", []),
                    answer.get("pid"),
                    process.stdin,
                )
            finally:
                process.stdin.close()
                status = process.wait(STOP_SECONDS)
        assert status == 0, f"the control command ended with status {status} in {name!r}"


def _first_line(stdout: IO[str], name: str) -> dict[str, Any]:
    ready, _, _ = select.select([stdout], [], [], START_SECONDS)
    assert ready, f"the control command printed nothing in {START_SECONDS} s in {name!r}"
    line = stdout.readline()
    assert line, f"the control command ended before the server was ready in {name!r}"
    answer: dict[str, Any] = json.loads(line)
    return answer
