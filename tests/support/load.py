"""Many clients that connect, fetch and disconnect in a loop until the end of standard input.

`python -m tests.support.load SOCKET CLIENTS` prints a line when each client was served once, and a
Report as JSON at the end. Only gRPC's own connection attempts are repeated.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field

import grpc

from agent.pb import workloadapi_pb2 as pb

DEADLINE_SECONDS = 10.0


@dataclass
class Report:
    """The results of all clients so far."""

    fetched: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


async def fetch(socket: str) -> None:
    """Fetch one FetchX509SVID message on a new connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        method = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=pb.X509SVIDRequest.SerializeToString,
            response_deserializer=pb.X509SVIDResponse.FromString,
        )
        metadata = (("workload.spiffe.io", "true"),)
        call = method(pb.X509SVIDRequest(), metadata=metadata, timeout=DEADLINE_SECONDS)
        response = await call.read()
        if not isinstance(response, pb.X509SVIDResponse):
            raise TypeError("a stream without a message")
        call.cancel()


async def client(socket: str, report: Report, ended: asyncio.Event) -> None:
    """Fetch in a loop until `ended` is set."""
    clock = asyncio.get_running_loop().time
    while not ended.is_set():
        began = clock()
        try:
            await fetch(socket)
            report.fetched += 1
        except grpc.aio.AioRpcError as error:
            report.failures.append(f"{error.code().name}: {error.details()}")
        report.slowest = max(report.slowest, clock() - began)


async def run(socket: str, clients: int) -> None:
    """Run the clients and print the report (see the module's docstring)."""
    report, ended = Report(), asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    await asyncio.gather(*(fetch(socket) for _ in range(clients)))
    print(json.dumps({"clients": clients}), flush=True)  # noqa: T201 - for the test to read
    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client(socket, report, ended))
    print(json.dumps(report.__dict__))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
