"""Callers for attestors to look at, and what these say."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.attestation.attestor import WorkloadAttestor
from agent.attestation.result import Attested
from agent.kernel.caller import Caller, identify
from attestors.api import Selector
from tests.support import pids
from tests.support.fakes import FakeAttestor

ONE = Selector("fake", "one")
TWO = Selector("other", "two")


async def attested(attestor: WorkloadAttestor, caller: Caller) -> Attested:
    async with attestor.attest(caller) as attestation:
        return attestation


class OtherAttestor(FakeAttestor):
    name = "other"


@contextmanager
def caller_of(behave: Callable[[], object] = signal.pause) -> Iterator[tuple[Caller, int]]:
    """A child process that has connected to us, as its caller."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # the kernel chooses an abstract name
    listener.listen()

    def child() -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(listener.getsockname())
        behave()

    with listener, pids.sleeping_child(child) as pid:
        sock, _ = listener.accept()
        with sock:
            caller = identify(sock)
        try:
            yield caller, pid
        finally:
            caller.close()
