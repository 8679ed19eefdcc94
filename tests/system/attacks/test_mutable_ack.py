"""The caller queues PING answers before the question, and their content is set later.

Process P connects, makes a call and queues answers without a payload, by ways that do not copy.
Then P executes the trusted program. A child of P sees the PING and sets the payload. The kernel
names P as the sender of every byte. In vouchd an answer counts only if its whole frame was queued
after the question: only the trusted program itself could do that.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from agent.pb import workloadapi_pb2 as pb
from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.mutable_bytes import LATER, QUEUEING, SIZE, Way
from tests.support.targets import TRUSTED_ID, VICTIM, Target, connect, exec_trusted
from tests.support.wire import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    Wire,
    frame,
    message,
    plain_block,
    request_fields,
    settings,
)

SO_ZEROCOPY = 60
UNKNOWN_KIND = 0x42
# As many bytes as the agent reads at once: the answers are in the next read.
REQUEST_BYTES = 512
BLOCK_BYTES = 256
ANSWER_BYTES = 17
# Longer than the agent waits for an answer.
PATIENCE_SECONDS = 15

pytestmark = pytest.mark.system


def request() -> bytes:
    """Return a call of FetchX509SVID, with an unknown frame in front to make REQUEST_BYTES."""
    block = plain_block(
        request_fields("/SpiffeWorkloadAPI/FetchX509SVID", ("workload.spiffe.io", "true"))
    )
    called = frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, message(b""))
    start = PREFACE + settings()
    rest = REQUEST_BYTES - len(start) - len(called) - len(frame(UNKNOWN_KIND))
    return start + frame(UNKNOWN_KIND, payload=bytes(rest)) + called


def answers(payload: bytes) -> bytes:
    """Return many answers with this payload, each at the end of a block."""
    filler = frame(UNKNOWN_KIND, payload=bytes(BLOCK_BYTES - ANSWER_BYTES - 9))
    return (filler + frame(PING, ACK, payload=payload)) * (SIZE // BLOCK_BYTES)


@dataclass
class Attempt:
    """An attack under way, by one way to queue answers."""

    name: str
    pid: int
    go: int
    connected: int
    executed: int
    report: int

    def close(self) -> list[str]:
        """Wait for the report, end P, and return the SPIFFE IDs that its child received."""
        with os.fdopen(self.report) as pipe:
            found = pipe.read().split()
        pids.kill_and_reap(self.pid)
        for descriptor in (self.go, self.connected, self.executed):
            os.close(descriptor)
        return found


Queue = Callable[[socket.socket], None]
Answer = Callable[[bytes], None]


def attempt(
    target: Target, name: str, prepare: Callable[[], tuple[Queue, Answer, Callable[[], None]]]
) -> Attempt:
    """Start P, which connects, and waits for the word to attack."""
    connected, go, executed, report = os.pipe(), os.pipe(), os.pipe(), os.pipe()

    def attacker() -> None:
        pids.become(VICTIM)
        os.close(executed[0])
        queue, answer, execute = prepare()
        sock = connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has sent bytes: the connection was accepted
        if os.fork() == 0:
            os.close(executed[1])
            signal.alarm(PATIENCE_SECONDS)
            os.write(report[1], " ".join(received(sock, answer)).encode())
            os._exit(0)
        os.close(report[1])
        os.write(connected[1], b"!")
        os.read(go[0], 1)
        sock.sendall(request())
        queue(sock)
        execute()

    pid = pids.fork(attacker)
    for pipe in (connected[1], go[0], executed[1], report[1]):
        os.close(pipe)
    return Attempt(name, pid, go[1], connected[0], executed[0], report[0])


def received(sock: socket.socket, answer: Answer) -> list[str]:
    """Read without sending; answer each PING by `answer`; return the SPIFFE IDs that come."""
    wire = Wire(sock)
    wire.send = lambda *_parts: None  # type: ignore[method-assign]
    answered = 0
    try:
        while not wire.response(1).messages and wire.open(1) and wire.read():
            for payload in wire.pings[answered:]:
                answer(payload)
            answered = len(wire.pings)
    except OSError:
        pass
    messages = wire.response(1).messages
    return [s.spiffe_id for m in messages for s in pb.X509SVIDResponse.FromString(m).svids]


def attack(target: Target, attempts: list[Attempt]) -> dict[str, list[str]]:
    """Let all attempts go on while the agent is stopped, as a busy agent is for moments."""
    for each in attempts:
        assert os.read(each.connected, 1), each.name
    os.kill(target.pid, signal.SIGSTOP)
    for each in attempts:
        os.write(each.go, b"!")
    for each in attempts:
        os.read(each.executed, 1)  # ends when exec closes the other end
    os.kill(target.pid, signal.SIGCONT)
    return {each.name: each.close() for each in attempts}


def by(way: type[Way], target: Target) -> Callable[[], tuple[Queue, Answer, Callable[[], None]]]:
    def prepare() -> tuple[Queue, Answer, Callable[[], None]]:
        made = way(answers(bytes(8)))
        return (
            made.queue,
            lambda payload: made.change(answers(payload)),
            lambda: exec_trusted(target),
        )

    return prepare


def by_echo(target: Target) -> tuple[Queue, Answer, Callable[[], None]]:
    """Queue an answer's frame header; the trusted program (netcat) echoes the payload behind it."""
    path = str(target.sockets / f"echo-{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    kept = []  # netcat would end at the end of this connection

    def queue(sock: socket.socket) -> None:
        sock.sendall(frame(PING, ACK, payload=bytes(8))[:9])
        os.dup2(sock.fileno(), 1)

    def answer(payload: bytes) -> None:
        accepted, _ = listener.accept()
        accepted.sendall(payload)
        kept.append(accepted)

    def execute() -> None:
        reading, writing = os.pipe()
        os.dup2(reading, 0)
        os.set_inheritable(writing, True)  # netcat would end at the end of its input
        os.execv(target.trusted, ["trusted", "-U", path])  # noqa: S606

    return queue, answer, execute


def test_mutable_ack(target: Target) -> None:
    attempts = [
        *(attempt(target, way.__name__, by(way, target)) for way in (*QUEUEING, *LATER)),
        attempt(target, "echo", lambda: by_echo(target)),
    ]
    found = attack(target, attempts)
    succeeded = [name for name, ids in found.items() if TRUSTED_ID in ids]
    if target.naive:
        assert succeeded == [each.name for each in attempts]
    target.record_result(succeeded=bool(succeeded))
    target.require_log("call refused", "did not answer a PING")


@pytest.mark.parametrize("way", QUEUEING)
def test_way_changes_bytes_after_they_were_queued(way: type[Way]) -> None:
    """Without this the attack would fail for the wrong reason."""

    def attacker() -> None:
        near, far = socket.socketpair()
        made = way(b"a" * SIZE)
        made.queue(near)
        made.change(b"b" * SIZE)
        os._exit(0 if far.recv(SIZE) == b"b" * SIZE else 2)

    assert pids.reap(pids.fork(attacker)) == 0


@pytest.mark.parametrize("way", LATER)
def test_way_queues_after_the_word(way: type[Way]) -> None:
    def attacker() -> None:
        near, far = socket.socketpair()
        far.settimeout(SAFETY_SECONDS)
        made = way(b"a" * SIZE)
        made.queue(near)
        made.change(b"b" * SIZE)
        os._exit(0 if far.recv(SIZE) == b"b" * SIZE else 2)

    assert pids.reap(pids.fork(attacker)) == 0


def test_zero_copy_send_is_not_supported() -> None:
    """MSG_ZEROCOPY would be a further way; the kernel knows it for no Unix stream socket."""
    near, far = socket.socketpair()
    with near, far, pytest.raises(OSError, match="not supported") as raised:
        near.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    assert raised.value.errno == errno.EOPNOTSUPP
