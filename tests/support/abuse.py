"""Endless floods of HTTP/2 frames (RFC 9113)."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice

import hpack

from tests.support.targets import ATTACKER, Target, child_as, connect
from tests.support.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

__all__ = [
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "HEADERS",
    "INITIAL_WINDOW_SIZE",
    "PING",
    "PREFACE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "frame",
]

# The frames of one write are more than the agent reads at once.
BATCH_FRAMES = 500


def call_headers(
    extra: Iterable[tuple[str, str]] = (), path: str = "/SpiffeWorkloadAPI/FetchX509SVID"
) -> bytes:
    """The header block of a call, without use of the dynamic table."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
        *extra,
    ]
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block: bytes = encoder.encode(headers, huffman=False)
    return block


def streams() -> Iterator[int]:
    """Yield the stream IDs of a client: 1, 3, 5, …"""
    return count(1, 2)


@contextmanager
def flooded(
    target: Target, frames: Callable[[], Iterator[bytes]], *, clients: int = 4, uid: int = ATTACKER
) -> Iterator[None]:
    """Send these frames from several processes, as fast as the agent reads, for the block.

    Each process reconnects when its connection ends, and never reads.
    """

    def flood() -> None:
        for _ in streams():
            one_connection(target.socket, frames())

    if clients == 0:
        yield
        return
    with child_as(uid, flood), flooded(target, frames, clients=clients - 1, uid=uid):
        yield


def one_connection(path: str, frames: Iterator[bytes]) -> None:
    """Send these frames on one connection until it ends."""
    try:
        with connect(path) as sock:
            sock.settimeout(None)
            sock.sendall(PREFACE + frame(SETTINGS))
            while batch := b"".join(islice(frames, BATCH_FRAMES)):
                sock.sendall(batch)
            _wait_for_the_end(sock)
    except OSError:
        return


def _wait_for_the_end(sock: socket.socket) -> None:
    """Wait without reading; poll(2) always reports a hang-up."""
    end = select.poll()
    end.register(sock, 0)
    end.poll()
