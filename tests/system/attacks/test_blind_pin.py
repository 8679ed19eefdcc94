"""A trusted launcher starts other code between two looks, while its address space is kept alive.

The attacker's process executes the trusted launcher, with its connection and a call under way. The
launcher is asked a PING. Told so, it executes the attacker's program, which answers: the same
process, the answer queued after the question. An agent that notices the execution by a pin (an open
file of the old address space) alone is blind: another process, of any user, keeps that address
space alive. vouchd reads the fingerprint again behind each answer.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.support import pids
from tests.support.blinding import Blinder, blinded, read_cmdline, read_memory
from tests.support.targets import ATTACKER, TRUSTED_ID, VICTIM, Target, connect
from tests.support.wire import ACK, PING, frame
from tests.system.attacks.test_mutable_ack import received, request

PATIENCE_SECONDS = 15

pytestmark = pytest.mark.system


@dataclass
class Attacker:
    """The attacker's process, which becomes the launcher on the word, and its child's report."""

    pid: int
    go: int
    report: int


def start(target: Target) -> Attacker:
    """Start the attacker's process; return when it has connected."""
    ready, go, report = os.pipe(), os.pipe(), os.pipe()

    def attacker() -> None:
        pids.become(VICTIM)
        order, orders = os.pipe()
        answer = os.memfd_create("answer")
        sock = connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has sent bytes: the connection was accepted
        if os.fork() == 0:
            signal.alarm(PATIENCE_SECONDS)
            found = received(sock, lambda payload: answer_by_other_code(payload, answer, orders))
            os.write(report[1], " ".join(found).encode())
            os._exit(0)
        os.close(report[1])
        os.write(ready[1], b"!")
        os.read(go[0], 1)
        sock.sendall(request())
        launch(target, sock, answer, order)

    pid = pids.fork(attacker)
    os.read(ready[0], 1)
    for descriptor in (*ready, go[0], report[1]):
        os.close(descriptor)
    return Attacker(pid, go[1], report[0])


def answer_by_other_code(payload: bytes, answer: int, orders: int) -> None:
    """Make the launcher start the program that answers."""
    os.pwrite(answer, frame(PING, ACK, payload=payload), 0)
    os.write(orders, b"\n")


def launch(target: Target, sock: socket.socket, answer: int, order: int) -> None:
    """Execute the trusted launcher, with the connection open."""
    sock.setblocking(True)
    for descriptor in (sock.fileno(), answer):
        os.set_inheritable(descriptor, True)
    os.dup2(order, 0)
    os.dup2(sock.fileno(), 1)
    # cat(1) answers, and waits for more.
    other = ["/bin/cat", f"/proc/self/fd/{answer}", "-"]
    script = 'read order; exec "$@"'
    os.execv(target.trusted, ["launcher", "-c", script, "launcher", *other])  # noqa: S606


@pytest.mark.parametrize(
    ("blinder", "uid"),
    [(None, 0), (read_cmdline, ATTACKER), (read_memory, VICTIM)],
    ids=["not blinded", "cmdline read by any user", "memory read by the same user"],
)
def test_blind_pin(target: Target, blinder: Blinder | None, uid: int) -> None:
    shutil.copy("/bin/dash", target.trusted)  # a shell is a launcher
    attacker = start(target)
    with ExitStack() as stack:
        stack.callback(pids.kill_and_reap, attacker.pid)
        os.kill(target.pid, signal.SIGSTOP)  # a busy agent, for a moment
        os.write(attacker.go, b"!")
        os.close(attacker.go)
        wait_for_program(attacker.pid, str(target.trusted))
        if blinder is not None:
            stack.enter_context(blinded(attacker.pid, blinder, uid))
        os.kill(target.pid, signal.SIGCONT)
        with os.fdopen(attacker.report) as pipe:
            found = pipe.read().split()
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log("call refused", "changed its program")


def wait_for_program(pid: int, path: str) -> None:
    while os.readlink(f"/proc/{pid}/exe") != path:  # noqa: PTH115
        pass
