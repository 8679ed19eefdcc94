"""Workload API clients of other projects, each in its own process.

The client programs find the agent by SPIFFE_ENDPOINT_SOCKET and print lines of JSON. All have the
commands

* `fetch AUD...` fetches everything, verifies it, and prints one object (see `test_clients.py`);
* `refused` tries everything as a caller without identity and prints the errors;
* `watch` prints each X.509 update as it arrives, until it is ended.

Programs that can call without their SPIFFE library have (see `test_connections.py`)

* `headerless` tries everything without the security header and prints the errors;
* `many N` begins N calls at once on one connection, half of them streams, and prints the SPIFFE ID
  of each response;
* `ended deadline`, `ended cancel` end a stream after its first update, by a deadline of a few
  seconds or by a cancellation, between two other calls on the same connection; they print the
  number of updates, the stream's status and the SPIFFE ID of the last call.

`many` and `ended` keep the connection open until they are ended. Libraries for mutual TLS have
`serve` and `dial PORT`, the ends of one connection: `serve` first prints its port, and each end
prints the SPIFFE ID of its peer: `{"peer": ID}`, or `{"refused": reason}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.support.agent import RunningAgent

PATIENCE_SECONDS = 90.0


class Running:
    """A process that prints JSON objects; it is killed after PATIENCE_SECONDS."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def next(self, wanted: Callable[[Any], bool] = lambda _line: True) -> Any:
        """Read objects until `wanted` accepts one, and return it.

        Raises:
            AssertionError: the program ended first.
        """
        assert self._process.stdout is not None
        text = ""
        for line in self._process.stdout:
            text += line
            if line.startswith(" ") or not line.endswith("}\n"):
                continue  # grpcurl's messages take several lines
            message, text = json.loads(text), ""
            if wanted(message):
                return message
        raise AssertionError(f"{self._process.args!r} ended or timed out: {self._errors()}")

    def _errors(self) -> str:
        return self._process.stderr.read() if self._process.stderr else ""


@contextmanager
def running(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a program for the block, at most PATIENCE_SECONDS."""
    with subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        limit = threading.Timer(PATIENCE_SECONDS, process.kill)
        limit.start()
        try:
            yield Running(process)
        finally:
            process.kill()
            limit.cancel()
            limit.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignClient:
    """A client program with its command line."""

    argv: Sequence[str | Path]

    def once(self, agent: RunningAgent, *arguments: str) -> Any:
        """Run the client to its end and return its one line of JSON."""
        done = subprocess.run(
            [*self.argv, *arguments],
            env=self._env(agent),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def running(self, agent: RunningAgent, *arguments: str) -> AbstractContextManager[Running]:
        """Run the client for the block, at most PATIENCE_SECONDS."""
        return running([*self.argv, *arguments], self._env(agent))

    def _env(self, agent: RunningAgent) -> dict[str, str]:
        return {**os.environ, "SPIFFE_ENDPOINT_SOCKET": agent.address}
