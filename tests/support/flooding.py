"""One user's flood, and the latency of another user's calls meanwhile (needs root for two users).

The agent and the measured caller have real-time priority (SCHED_RR), so that the measurement shows
how the agent divides its time, and not how a small machine does. On a host, the processor shares of
the service manager bound the programs of a flooding user.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from agent.pb import workloadapi_pb2 as pb
from tests.support import abuse, pids, raw

FLOODER, OTHER = 2001, 2002
FLOODERS = 4
SECONDS = 5.0
# The pause between calls keeps the measured caller below its share.
PAUSE_SECONDS = 0.01
FIRST = ("chrt", "--rr", "1")
# The time until all flooding processes run; they do not report. The flooder's burst is not yet used
# up, which is the worst moment for other users.
WARM_UP_SECONDS = 0.5

ENTRIES = f"""
entries:
  - spiffe_id: /flooder
    selectors: [unix:uid:{FLOODER}]
  - spiffe_id: /other
    selectors: [unix:uid:{OTHER}]
"""


def reset_at_once() -> Iterator[bytes]:
    """Calls that are reset at once."""
    headers = abuse.call_headers()
    for stream in abuse.streams():
        yield abuse.frame(abuse.HEADERS, abuse.END_HEADERS, stream, headers)
        yield abuse.frame(abuse.DATA, abuse.END_STREAM, stream, bytes(5))
        yield abuse.frame(abuse.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))


def pings() -> Iterator[bytes]:
    """Nothing but PINGs."""
    while True:
        yield abuse.frame(abuse.PING, payload=bytes(8))


def sends(path: str, frames: Callable[[], Iterator[bytes]]) -> None:
    """Send frames as fast as the agent takes them, on one connection after another."""
    while True:
        abuse.one_connection(path, frames())


def fetches(path: str) -> None:
    """Call on many connections, each time when the last call has ended."""
    clients = [raw.connect(path) for _ in range(50)]
    while True:
        waiting = [(c, c.call("FetchJWTSVID", pb.JWTSVIDRequest(audience=["a"]))) for c in clients]
        for client, stream in waiting:
            client.status(stream)


def connects(path: str) -> None:
    """Make one connection after another, each with a call."""
    while True:
        with suppress(OSError, raw.ConnectionEndedError):
            client = raw.connect(path)
            client.fetch_x509()
            client.sock.close()


def hangs_up(path: str) -> None:
    """Make connections and close them at once."""
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.connect_ex(path)


def holds(path: str) -> None:
    """Hold as many connections as possible, each with as many streams as possible."""
    kept = []
    while True:
        with suppress(OSError, raw.ConnectionEndedError, AssertionError):
            client = raw.connect(path)
            for _ in range(20):
                client.call("FetchX509SVID", pb.X509SVIDRequest())
            kept.append(client)


FLOODS: dict[str, Callable[[str], None]] = {
    "calls": fetches,
    "calls, reset at once": lambda path: sends(path, reset_at_once),
    "PINGs": lambda path: sends(path, pings),
    "connect + call": connects,
    "connects, hung up at once": hangs_up,
    "connections and streams held": holds,
}


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latencies of calls on an open connection, and of connects with a call, in seconds."""

    call: list[float]
    connect: list[float]


@contextmanager
def flood(behave: Callable[[str], None], path: str, processes: int = FLOODERS) -> Iterator[None]:
    """Run `behave` in several processes of the flooding user for the block."""

    def run() -> None:
        pids.become(FLOODER)
        behave(path)

    children = [pids.fork(run) for _ in range(processes)]
    try:
        time.sleep(WARM_UP_SECONDS)  # noqa: TID251 - the flood must have begun
        yield
    finally:
        for child in children:
            pids.kill_and_reap(child)


def latencies(path: str, seconds: float = SECONDS) -> Latencies:
    """Return the latencies of calls of a process of the other user, measured for `seconds`."""
    read, write = os.pipe()

    def run() -> None:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        pids.become(OTHER)
        steady = raw.connect(path)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            _fetch(steady)
            between = time.perf_counter()
            fresh = raw.connect(path)
            _fetch(fresh)
            fresh.sock.close()
            done = time.perf_counter()
            os.write(write, f"{between - began} {done - between}\n".encode())
            time.sleep(PAUSE_SECONDS)  # noqa: TID251 - the caller's pace

    child = pids.fork(run)
    os.close(write)
    with os.fdopen(read) as pipe:
        pairs = [line.split() for line in pipe]
    assert pids.reap(child) == 0
    return Latencies([float(a) for a, _ in pairs], [float(b) for _, b in pairs])


def percentile(share: float, values: list[float]) -> float:
    """The value below which this share of the values lies."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def _fetch(client: raw.RawClient) -> None:
    call = client.status(client.call("FetchJWTSVID", pb.JWTSVIDRequest(audience=["a"])))
    assert call.status == 0, call.details
