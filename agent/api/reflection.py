"""gRPC server reflection: lists the services of a socket for every process that connects.

Versions v1 and v1alpha have the same messages; newer clients ask for v1 first. Only v1alpha has
generated code, so the file of v1 is made from the one of v1alpha.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb

from agent.api.methods import decode, encode, served
from agent.errors import UnavailableError
from agent.transport.service import StatusCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.descriptor import Descriptor, FileDescriptor, ServiceDescriptor
    from google.protobuf.message import Message

    from agent.transport.service import Call, Method

# A client asks for the list, and for the files of services and messages. The fair queue counts
# calls, not messages: so a call has an end.
MAX_QUESTIONS = 256


def _service_of_v1() -> ServiceDescriptor:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    _rename(file)
    file.options.ClearField("deprecated")
    # In a pool of its own: a client library in the same process may have generated code for it.
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("grpc.reflection.v1.ServerReflection")


def _rename(message: Message) -> None:
    """Replace `v1alpha` by `v1` in every text of a message."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                _rename(each)
        elif isinstance(value, str):
            setattr(message, field.name, value.replace("v1alpha", "v1"))


_V1 = _service_of_v1()
_ALPHA = Default().FindServiceByName("grpc.reflection.v1alpha.ServerReflection")
SERVICES = (_V1.full_name, _ALPHA.full_name)
_POOLS = (Default(), _V1.file.pool)


class Reflection:
    """Server reflection, both versions, over the services given by name."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = tuple(sorted(services))

    def methods(self) -> Mapping[bytes, Method]:
        """Return the method of each version."""
        handlers = {"ServerReflectionInfo": self._answer}
        return {**served(_V1, handlers), **served(_ALPHA, handlers)}

    async def _answer(self, _request_type: object, call: Call) -> None:
        left = MAX_QUESTIONS
        async for raw in call.requests():
            if not left:
                raise UnavailableError(
                    f"a call may ask {MAX_QUESTIONS} questions; open another call"
                )
            left -= 1
            await call.send(encode(self._respond(decode(pb.ServerReflectionRequest, raw))))

    def _respond(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        response = pb.ServerReflectionResponse(original_request=request)
        try:
            self._fill(response, request)
        except KeyError:
            response.error_response.error_code = StatusCode.NOT_FOUND
            response.error_response.error_message = "not found"
        return response

    def _fill(
        self, response: pb.ServerReflectionResponse, request: pb.ServerReflectionRequest
    ) -> None:
        """Write the answer to a question.

        Raises:
            KeyError: what it asks for does not exist.
        """
        match request.WhichOneof("message_request"):
            case "list_services":
                for service in self._services:
                    response.list_services_response.service.add(name=service)
            case "file_by_filename":
                _add_file(response, _file_by_name(request.file_by_filename))
            case "file_containing_symbol":
                _add_file(response, _file_of(request.file_containing_symbol))
            case "file_containing_extension":
                asked = request.file_containing_extension
                extended = _message(asked.containing_type)
                extension = Default().FindExtensionByNumber(extended, asked.extension_number)
                _add_file(response, _file_of(extension.full_name))
            case "all_extension_numbers_of_type":
                extended = _message(request.all_extension_numbers_of_type)
                numbers = sorted(each.number for each in Default().FindAllExtensions(extended))
                response.all_extension_numbers_response.base_type_name = extended.full_name
                response.all_extension_numbers_response.extension_number.extend(numbers)
            case _:
                response.error_response.error_code = StatusCode.INVALID_ARGUMENT
                response.error_response.error_message = "the request asks for nothing"


def _message(name: str) -> Descriptor:
    return Default().FindMessageTypeByName(name)


def _file_by_name(name: str) -> FileDescriptor:
    for pool in _POOLS:
        with suppress(KeyError):
            return pool.FindFileByName(name)
    raise KeyError(name)


def _file_of(symbol: str) -> FileDescriptor:
    # The pool knows services, and not their methods: a method is found by its service.
    service, _, method = symbol.rpartition(".")
    for pool in _POOLS:
        with suppress(KeyError):
            return pool.FindFileContainingSymbol(symbol)
        with suppress(KeyError):
            return pool.FindServiceByName(service).methods_by_name[method].containing_service.file
    raise KeyError(symbol)


def _add_file(response: pb.ServerReflectionResponse, file: FileDescriptor) -> None:
    response.file_descriptor_response.file_descriptor_proto.extend(_encoded(file))


@cache
def _encoded(file: FileDescriptor) -> tuple[bytes, ...]:
    """Return a file and all files that it imports, each once."""
    files = {file.name: file}
    waiting = [file]
    while waiting:
        for each in waiting.pop().dependencies:
            if each.name not in files:
                files[each.name] = each
                waiting.append(each)
    return tuple(each.serialized_pb for each in files.values())
