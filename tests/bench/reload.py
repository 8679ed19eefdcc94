"""How soon an edit reaches open streams, and what a very large file of entries takes to load.

Wall-clock times of one machine: the time from the rename that ends the edit to the message in the
client's hands, with 1,000 streams open. Once the edit concerns one of them, once all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Self

import grpc

from tests.support.agent import PATIENCE_SECONDS, REPOSITORY, RunningAgent

STREAMS = 1000
PER_CONNECTION = 100
ROUNDS = 9
MANY = 100_000
METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"
METADATA = (("workload.spiffe.io", "true"),)
LATENCY_BUDGET_MS = 100
LOAD_BUDGET_S = 5

# A workload of another program than the others: it prints when a message arrives.
WATCHER = f"""
import grpc, sys, time
with grpc.insecure_channel(sys.argv[1]) as channel:
    method = channel.unary_stream({METHOD!r}, request_serializer=bytes, response_deserializer=bytes)
    for message in method(b"", metadata={METADATA!r}):
        print(time.monotonic(), flush=True)
"""


def measure() -> list[dict[str, object]]:
    """Start an agent and everything else; the rows of the table."""
    agent = RunningAgent(_entries(0, 0, "none"), config="log: {level: warning}")
    try:
        program = _copied_interpreter(agent.directory)
        return asyncio.run(_measure(agent, program))
    finally:
        agent.close()


async def _measure(agent: RunningAgent, program: Path) -> list[dict[str, object]]:
    # One loop for both: gRPC does not survive the end of its first.
    return [*await _latencies(agent, program), *await _large_file(agent)]


def _entries(shared: int, narrow: int, program: str, unrelated: int = 0) -> str:
    uid = os.getuid()
    entries = [
        {"spiffe_id": f"/shared/{shared}", "selectors": [f"unix:uid:{uid}"]},
        {
            "spiffe_id": f"/narrow/{narrow}",
            "selectors": [f"unix:uid:{uid}", f"unix:path:{program}"],
        },
    ]
    entries += [
        {"spiffe_id": f"/u/{n}", "selectors": [f"unix:uid:{10**6 + n}", "unix:gid:5"]}
        for n in range(unrelated)
    ]
    return "entries:\n" + "".join(f"  - {json.dumps(entry)}\n" for entry in entries)


def _edit(agent: RunningAgent, text: str) -> float:
    """Replace the file as editors do; when that was."""
    beside = agent.entries.with_suffix(".new")
    beside.write_text(text)
    began = time.monotonic()
    beside.rename(agent.entries)
    return began


def _copied_interpreter(directory: Path) -> Path:
    """The same program in another place is another program to the agent."""
    copy = directory / "workload"
    shutil.copy(Path(sys.executable).resolve(), copy)
    return copy


async def _latencies(agent: RunningAgent, program: Path) -> list[dict[str, object]]:
    one: list[float] = []
    first: list[float] = []
    last: list[float] = []
    _edit(agent, _entries(0, 0, str(program)))
    async with _Streams(agent.address) as streams:
        watcher = await _start_watcher(agent, program)
        assert watcher.stdout is not None
        try:
            for number in range(1, ROUNDS + 1):
                await asyncio.sleep(0.3)  # whatever the last edit left behind is over
                streams.arrivals.clear()
                began = _edit(agent, _entries(0, number, str(program)))
                one.append(float(await watcher.stdout.readline()) - began)
                assert not streams.arrivals, "a stream was told of what does not concern it"
        finally:
            watcher.kill()
            await watcher.wait()
        for number in range(1, ROUNDS + 1):
            await asyncio.sleep(0.3)
            streams.arrivals.clear()
            began = _edit(agent, _entries(number, ROUNDS, str(program)))
            await streams.all_arrived()
            first.append(min(streams.arrivals) - began)
            last.append(max(streams.arrivals) - began)
    return [
        _row(f"an edit that concerns one of {STREAMS} streams, ms", one, LATENCY_BUDGET_MS),
        _row(f"an edit that concerns all {STREAMS}: to the first, ms", first, None),
        _row(f"an edit that concerns all {STREAMS}: to the last, ms", last, None),
    ]


async def _start_watcher(agent: RunningAgent, program: Path) -> asyncio.subprocess.Process:
    watcher = await asyncio.create_subprocess_exec(
        program,
        "-c",
        WATCHER,
        agent.address,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONHOME": sys.base_prefix,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
    assert watcher.stdout is not None
    await watcher.stdout.readline()
    return watcher


class _Streams:
    """Many open streams; `arrivals` are the moments of their messages."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channels: list[grpc.aio.Channel] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._more = asyncio.Event()
        self.arrivals: list[float] = []

    async def __aenter__(self) -> Self:
        for _ in range(STREAMS // PER_CONNECTION):
            channel = grpc.aio.insecure_channel(
                self._address, options=[("grpc.use_local_subchannel_pool", 1)]
            )
            self._channels.append(channel)
            self._tasks += [
                asyncio.create_task(self._read(channel))  # noqa: TID251 - cancelled below
                for _ in range(PER_CONNECTION)
            ]
        await self.all_arrived()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    async def all_arrived(self) -> None:
        """Wait until each stream has had a message since the arrivals were cleared."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.arrivals) < STREAMS:
                self._more.clear()
                await self._more.wait()

    async def _read(self, channel: grpc.aio.Channel) -> None:
        method = channel.unary_stream(METHOD, request_serializer=bytes, response_deserializer=bytes)
        async for _message in method(b"", metadata=METADATA):
            self.arrivals.append(time.monotonic())
            self._more.set()


async def _large_file(agent: RunningAgent) -> list[dict[str, object]]:
    """Load 100,000 entries while somebody goes on asking."""
    loads: list[float] = []
    pauses: list[float] = []
    async with grpc.aio.insecure_channel(agent.address) as channel:
        for number in range(3):
            began = _edit(agent, _entries(100 + number, 0, "none", unrelated=MANY))
            wanted = f"/shared/{100 + number}".encode()
            served = b""
            while wanted not in served:
                asked = time.monotonic()
                call = channel.unary_stream(
                    METHOD, request_serializer=bytes, response_deserializer=bytes
                )(b"", metadata=METADATA)
                message: object = await call.read()
                assert isinstance(message, bytes)
                served = message
                call.cancel()
                pauses.append(time.monotonic() - asked)
            loads.append(time.monotonic() - began)
    return [
        _row(f"load of {MANY} entries, until they are in force, s", loads, LOAD_BUDGET_S, 1),
        _row("longest a caller waited meanwhile, ms", [max(pauses)], None),
    ]


def _row(
    what: str, seconds: list[float], budget: float | None, scale: float = 1000
) -> dict[str, object]:
    return {
        "what": what,
        "median": round(median(seconds) * scale, 1),
        "min": round(min(seconds) * scale, 1),
        "max": round(max(seconds) * scale, 1),
        "budget": "" if budget is None else budget,
    }


if __name__ == "__main__":
    os.chdir(REPOSITORY)
    print(json.dumps(measure(), indent=2))  # noqa: T201 - by itself
