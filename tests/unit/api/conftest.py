"""A gRPC call without gRPC: its context, and the table of callers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import grpc

from agent.errors import PeerError
from agent.kernel.account import Account
from agent.kernel.caller import Caller

CALLER = cast(
    "Caller",
    SimpleNamespace(
        account=Account(2, "a.service"),
        credentials=SimpleNamespace(pid=1, uid=2, gid=2, groups=()),
        process=SimpleNamespace(inode=7),
    ),
)
HEADER = ("workload.spiffe.io", "true")


class Aborted(Exception):  # noqa: N818 - grpc's own is called AbortError
    """Raised by `abort`, as in gRPC."""


class Context:
    """The context of a call: keeps the messages sent and the status."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata
        self.sent: list[bytes] = []
        self.code: grpc.StatusCode | None = None
        self.details = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return "unix-abstract:token"

    async def write(self, message: bytes) -> None:
        self.sent.append(message)

    async def abort(
        self, code: grpc.StatusCode, details: str, _trailing: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.code, self.details = code, details
        raise Aborted


class Table:
    """A table of callers with one connection."""

    def __init__(self, caller: Caller | PeerError = CALLER) -> None:
        self._caller = caller
        self.begun = 0

    def begin_call(self, peer: str) -> Caller:
        self.begun += 1
        return self.caller(peer)

    def caller(self, _peer: str) -> Caller:
        if isinstance(self._caller, PeerError):
            raise self._caller
        return self._caller
