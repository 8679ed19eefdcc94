"""gRPC server reflection, asked over the raw client of this suite."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from tests.conformance.wire import UNIMPLEMENTED, CallError, Endpoint

# The messages of both are the same on the wire.
_VERSIONS = ("v1", "v1alpha")


@dataclass(frozen=True, slots=True)
class Reflection:
    """What an endpoint says of itself."""

    endpoint: Endpoint

    def services(self) -> list[str]:
        """The full names of all services."""
        response = self._ask(ServerReflectionRequest(list_services="*"))
        return [service.name for service in response.list_services_response.service]

    def file(self, symbol: str) -> FileDescriptorProto:
        """The file in which a service or message is defined."""
        response = self._ask(ServerReflectionRequest(file_containing_symbol=symbol))
        # Some servers add the files that it imports.
        files = map(
            FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto
        )
        return next(file for file in files if symbol in _names(file))

    def methods(self, service: str) -> list[str]:
        """The names of a service's methods."""
        (found,) = (each for each in self.file(service).service if each.name == service)
        return [method.name for method in found.method]

    def _ask(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        failure: CallError | None = None
        for version in _VERSIONS:
            path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            # With the header too: whether it is asked for here, the standard leaves open.
            with self.endpoint.open(path, request.SerializeToString()) as call:
                try:
                    return call.next(ServerReflectionResponse)
                except CallError as error:
                    if error.code != UNIMPLEMENTED:
                        raise
                    failure = error
        assert failure is not None
        raise failure


def _names(file: FileDescriptorProto) -> set[str]:
    """What a file defines, for a file without a package."""
    return {s.name for s in file.service} | {m.name for m in file.message_type}
