"""One user tries to make the agent hold more memory than the limits allow."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

import pytest

from agent.limits.memory import most_bytes_of_one_user
from agent.service.policies import limits
from tests.conftest import AgentFactory
from tests.support import raw
from tests.support.abuse import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    call_headers,
    frame,
    streams,
)
from tests.support.agent import RunningAgent, entry_for_me
from tests.support.settings import settings

MIB = 1 << 20
# One user in one cgroup has half of each share: the tests fill that half.
SIZES = {
    "connections_per_user": 60,
    "streams_per_user": 2000,
    "attestations_per_user": 200,
    "requests_per_second": 1_000_000,
    "buffer_bytes_per_user": 2 * MIB,
}
CONNECTIONS = 30
PER_CONNECTION = 100
# After so many connections that the agent cut, it lets this user hold no more.
CUTS = 5
# The caches that all users share are filled before, but for some entries.
SHARED_BYTES = 3 * MIB
# Of 64, the call itself has seven.
FIELDS = 56


def random_fields(count: int, size: int) -> list[tuple[str, str]]:
    return [(f"x{secrets.token_hex(4)}", secrets.token_hex(size // 2)) for _ in range(count)]


def large_headers() -> Iterator[bytes]:
    """Half-open calls, each with a header block of its own that is nearly as large as may be."""
    for stream in streams():
        yield frame(HEADERS, END_HEADERS, stream, call_headers(random_fields(50, 100)))


def tiny_headers() -> Iterator[bytes]:
    """Half-open calls with as many fields as may be: objects cost more than text."""
    for stream in streams():
        yield frame(HEADERS, END_HEADERS, stream, call_headers(random_fields(55, 2)))


def bodies() -> Iterator[bytes]:
    """Half requests, each nearly complete."""
    for stream in streams():
        prefix = b"\0" + (32_000).to_bytes(4, "big")
        yield frame(HEADERS, END_HEADERS, stream, call_headers()) + frame(
            DATA, 0, stream, prefix + bytes(15_000)
        )


def half_blocks() -> Iterator[bytes]:
    """One header block without an end on each connection."""
    yield frame(HEADERS, 0, 1, call_headers(random_fields(40, 100))[:8000])


def unread() -> Iterator[bytes]:
    """Streams whose responses the windows of HTTP/2 hold back."""
    yield frame(SETTINGS, payload=INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4))
    for stream in streams():
        yield frame(HEADERS, END_HEADERS, stream, call_headers()) + frame(
            DATA, END_STREAM, stream, bytes(5)
        )


def open_streams() -> Iterator[bytes]:
    """Open streams, each with a header block of its own that is as large as may be."""
    for stream in streams():
        fields = random_fields(FIELDS, 80)
        yield frame(HEADERS, END_HEADERS, stream, call_headers(fields)) + frame(
            DATA, END_STREAM, stream, bytes(5)
        )


def tables() -> Iterator[bytes]:
    """A header table full of the smallest fields on each connection (RFC 7541 section 6.2.1)."""
    for stream in islice(streams(), 3):
        fields = b"".join(
            b"\x40\x02" + secrets.token_bytes(1).hex().encode() + b"\0" for _ in range(50)
        )
        yield frame(HEADERS, END_HEADERS, stream, call_headers() + fields)


WAYS = [large_headers, tiny_headers, bodies, half_blocks, unread, open_streams, tables]


def held(agent: RunningAgent) -> int:
    """The memory of the agent's process, in bytes."""
    lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def read(sock: socket.socket) -> None:
    """Read what has come."""
    with suppress(BlockingIOError):
        while sock.recv(65536, socket.MSG_DONTWAIT):
            pass


def fill(agent: RunningAgent, frames: Callable[[], Iterator[bytes]], stack: ExitStack) -> int:
    """Hold as much as the agent lets this process hold; return the most memory it had."""
    most, cuts = held(agent), 0
    for _ in range(CONNECTIONS):
        if cuts == CUTS:
            break
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            sock.connect(str(agent.socket))
            sock.sendall(PREFACE + frame(SETTINGS))
            for part in islice(frames(), PER_CONNECTION):
                sock.sendall(part)
                read(sock)  # an agent that a client does not read does not read either
        except OSError:
            cuts += 1
        most = max(most, held(agent))
    return most


def fill_shared_caches(agent: RunningAgent) -> None:
    """Fill the memo of header blocks."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(agent.socket))
        sock.sendall(PREFACE + frame(SETTINGS) + b"".join(islice(tiny_headers(), 90)))
        raw.connect(str(agent.socket)).sock.close()


@pytest.mark.parametrize("frames", WAYS, ids=lambda way: way.__name__)
def test_the_memory_that_one_user_can_take_is_below_the_computed_bound(
    agent_factory: AgentFactory, frames: Callable[[], Iterator[bytes]]
) -> None:
    config = "limits: {" + ", ".join(f"{key}: {value}" for key, value in SIZES.items()) + "}"
    agent = agent_factory(entry_for_me(), config=f"{config}\nlog: {{level: warning}}")
    bound = most_bytes_of_one_user(limits(settings(limits=SIZES).limits)) // 2
    fill_shared_caches(agent)
    before = held(agent)
    with ExitStack() as stack:
        grown = fill(agent, frames, stack) - before
    assert grown <= bound + SHARED_BYTES, f"{grown / MIB:.1f} of {bound / MIB:.1f} MiB"
