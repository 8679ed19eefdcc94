"""A gRPC call without a connection, and the services under test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import TypeVar, cast

from google.protobuf.message import Message

from agent.errors import PeerError
from agent.kernel.account import Account
from agent.kernel.caller import Caller
from agent.transport.grpc_protocol import PREFIX_BYTES
from agent.transport.service import Call, Services, StatusCode

CALLER = cast(
    "Caller",
    SimpleNamespace(
        account=Account(2, "a.service"),
        credentials=SimpleNamespace(pid=1, uid=2, gid=2, groups=()),
        process=SimpleNamespace(inode=7),
    ),
)
HEADER = ("workload.spiffe.io", "true")

MessageT = TypeVar("MessageT", bound=Message)


class FakeCall:
    """A call of one path. `caller` is asked for at each look; `peer` is the caller at connect."""

    def __init__(
        self,
        path: str,
        *requests: Message | bytes,
        metadata: tuple[tuple[str, str], ...] = (),
        caller: Caller | PeerError = CALLER,
        peer: Caller | None = None,
    ) -> None:
        self.path = path
        self._requests = [
            each.SerializeToString() if isinstance(each, Message) else each for each in requests
        ]
        self._metadata = metadata
        self._caller = caller
        self._peer = peer
        self.sent: list[bytes] = []
        self.code: StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str] = {}

    @property
    def request(self) -> bytes:
        return self._requests[0]

    async def requests(self) -> AsyncIterator[bytes]:
        for request in self._requests:
            yield request

    def metadata(self, name: str) -> tuple[str, ...]:
        return tuple(value for key, value in self._metadata if key == name)

    @property
    def peer(self) -> Caller | None:
        if self._peer is not None:
            return self._peer
        return None if isinstance(self._caller, PeerError) else self._caller

    def caller(self) -> Caller:
        if isinstance(self._caller, PeerError):
            raise self._caller
        return self._caller

    async def send(self, framed: bytes) -> None:
        self.sent.append(framed)

    async def of(self, services: Services) -> None:
        """Have the call served, as the transport does."""
        call: Call = self
        method = services.methods.get(self.path.encode(), services.unknown)
        self.code = StatusCode.OK
        try:
            await method.answer(call)
        except asyncio.CancelledError:
            self.code = StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - as the transport does
            status = services.observer.failed(call, error)
            self.code, self.details = status.code, str(status)
            self.trailing = dict(status.metadata)
        finally:
            services.observer.ended(call, self.code)

    def responses(self, kind: type[MessageT]) -> list[MessageT]:
        """Decode what was sent."""
        return [kind.FromString(framed[PREFIX_BYTES:]) for framed in self.sent]
