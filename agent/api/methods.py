"""Methods of gRPC services by their protobuf descriptors: paths, request types, coding."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from agent.errors import RequestError
from agent.transport.grpc_protocol import RESPONSE_BYTES, frame_message
from agent.transport.service import Method

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any, TypeAlias

    from google.protobuf.descriptor import ServiceDescriptor

    from agent.transport.service import Call

    Handler: TypeAlias = Callable[[type[Any], Call], Coroutine[Any, Any, None]]

# A request is a few audiences or one token: twice the longest token that is validated. Half a
# request stays in memory until the rest arrives.
MAX_REQUEST_BYTES = 32 * 1024

RequestT = TypeVar("RequestT", bound=Message)


def path_of(service: ServiceDescriptor, method: str) -> str:
    """Return the path of a method (PROTOCOL-HTTP2.md of grpc/grpc, "Path")."""
    return f"/{service.full_name}/{method}"


def served(
    service: ServiceDescriptor,
    handlers: Mapping[str, Handler],
    max_request_bytes: int = MAX_REQUEST_BYTES,
) -> dict[bytes, Method]:
    """Return the methods of a service, given by name, under their paths.

    A handler gets the class of its request besides the call.
    """
    methods = service.methods_by_name
    return {
        path_of(service, name).encode(): Method(
            answer=partial(handler, GetMessageClass(methods[name].input_type)),
            max_request_bytes=max_request_bytes,
            streams_requests=methods[name].client_streaming,
        )
        for name, handler in handlers.items()
    }


def encode(response: Message, max_bytes: float = RESPONSE_BYTES) -> bytes:
    """Encode and frame a response, deterministically: maps are sorted.

    Raises:
        ResponseSizeError: it is larger than `max_bytes`.
    """
    return frame_message(response.SerializeToString(deterministic=True), max_bytes)


def decode(request_type: type[RequestT], raw: bytes) -> RequestT:
    """Decode a request.

    Raises:
        RequestError: the bytes are not such a message.
    """
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        raise RequestError(f"the request is not a {request_type.DESCRIPTOR.name}") from error
