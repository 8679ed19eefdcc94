"""Endless floods of HTTP/2 frames (RFC 9113)."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice

import hpack

from tests.support.targets import ATTACKER, Target, child_as, connect

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW_SIZE = 4
# The frames of one write are more than the agent reads at once.
BATCH_FRAMES = 500


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


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
