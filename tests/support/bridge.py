"""A bridge from a loopback TCP port to a Unix socket, for clients that know TCP only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def bridge(path: str) -> Iterator[int]:
    """Copy bytes between each connection to a port and one to this socket; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, path))
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends accept(2)
            accepting.join()


def _accept(listener: socket.socket, path: str) -> None:
    serving = []
    with suppress(OSError):
        while True:
            outer, _ = listener.accept()
            serving.append(threading.Thread(target=_serve, args=(outer, path)))
            serving[-1].start()
    for each in serving:
        each.join()


def _serve(outer: socket.socket, path: str) -> None:
    with outer, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inner:
        inner.connect(path)
        back = threading.Thread(target=_copy, args=(inner, outer))
        back.start()
        _copy(outer, inner)
        back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65_536):
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    with suppress(OSError):
        source.shutdown(socket.SHUT_RD)
