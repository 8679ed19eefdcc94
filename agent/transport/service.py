"""gRPC services, as the transport serves them: methods by path, their calls, status codes.

The handlers of `agent.api` are `Method`s. A handler takes a `Call`, sends responses, and returns
for the status OK or raises an error, for which the `CallObserver` has the status.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from agent.errors import VouchdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from typing import Any

    from agent.kernel.caller import Caller


class StatusCode(IntEnum):
    """The status of a call (statuscodes.md of gRPC)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatusError(VouchdError):
    """Ends a call with a status other than OK."""

    def __init__(
        self, code: StatusCode, details: str, metadata: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(details)
        self.code = code
        self.metadata = metadata
        """Trailing metadata besides the status."""


class Call(Protocol):
    """A call under way, as its handler sees it."""

    @property
    def path(self) -> str:
        """The path that the client asked for, such as `/SpiffeWorkloadAPI/FetchX509SVID`."""
        ...

    @property
    def request(self) -> bytes:
        """The only request message. A method that streams requests has `requests` instead."""
        ...

    def requests(self) -> AsyncIterator[bytes]:
        """Iterate over the request messages until the client has sent its last."""
        ...

    def metadata(self, name: str) -> tuple[str, ...]:
        """Return the values of this metadata field, which are none if it is missing."""
        ...

    @property
    def peer(self) -> Caller | None:
        """The caller as the kernel named it at connect, for log and audit; None if it could not."""
        ...

    def caller(self) -> Caller:
        """Ask the kernel again for the caller: SO_PEERCRED of the connection, and the pidfd.

        Raises:
            PeerError: the kernel cannot name it, or names another one than at connect.
        """
        ...

    async def send(self, framed: bytes) -> None:
        """Send a response that `grpc_protocol.frame_message` framed, and wait for flow control.

        Raises:
            StatusError: the client hung up, or does not take its response.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method: how it answers a call, and how much a request message may hold."""

    answer: Callable[[Call], Coroutine[Any, Any, None]]
    max_request_bytes: int
    streams_requests: bool = False
    """Whether the answer begins with the first header, before a complete request."""


class CallObserver(Protocol):
    """Logs and counts the calls of a socket."""

    def failed(self, call: Call, error: Exception) -> StatusError:
        """Note a call that ends with an error, and return the status for the client.

        The error is that of the handler, or a StatusError if the client broke a rule of gRPC.
        """
        ...

    def ended(self, call: Call, code: StatusCode) -> None:
        """Note the end of a call with this status, which the client may not have received."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The methods of a socket by path (`/package.Service/Method`), and the one for all others."""

    unknown: Method
    observer: CallObserver
    methods: Mapping[bytes, Method] = field(default_factory=dict)
