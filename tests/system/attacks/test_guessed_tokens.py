"""The attacker guesses or reads the token of another process's connection.

The names of abstract sockets are public: `/proc/net/unix` lists them for every user. An agent with
predictable names, or one that believes the name alone, can be fooled. In vouchd a token is 128
random bits. While the connection lives the kernel gives the name to no other socket; afterwards the
name means nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import VICTIM, VICTIM_ID, Target, child_as, fetch_ids, found_by

pytestmark = pytest.mark.system


def test_guessed_tokens(target: Target) -> None:
    inner = target.agent.directory / ("inner.sock" if target.naive else "data/inner.sock")
    here, there = socket.socketpair()

    def victim() -> None:
        for _ in range(2):  # two connections, for the names of an open and of a closed one
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(target.socket)
                sock.recv(1)
                there.send(b"!")
                there.recv(1)

    def attacker(report: Callable[[list[str]], object]) -> None:
        names = public_names()
        here.send(b"!")  # the first connection ends
        here.recv(1)
        names |= public_names() | {f"caller-{number}" for number in range(20)}
        report([identity for name in sorted(names) for identity in speak_under(name, inner)])

    with here, there, child_as(VICTIM, victim):
        here.recv(1)
        found = found_by(attacker)
    target.record_result(succeeded=VICTIM_ID in found)


def public_names() -> set[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.rpartition("@")[2] for line in lines if " @" in line}


def speak_under(name: str, inner: Path) -> list[str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SAFETY_SECONDS)
        with suppress(OSError):  # the kernel refuses the name while its connection is open
            sock.bind(f"\0{name}")
            sock.connect(os.fspath(inner))
            return fetch_ids(sock)
    return []
