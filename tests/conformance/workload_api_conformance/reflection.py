"""A client of gRPC server reflection (doc/server-reflection.md of grpc/grpc)."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from .pb.reflection_pb2 import Request, Response
from .wire import UNIMPLEMENTED, CallError, Endpoint

# Both versions have the same messages.
_VERSIONS = ("v1", "v1alpha")


@dataclass(frozen=True, slots=True)
class Reflection:
    """The services and files that an endpoint lists."""

    endpoint: Endpoint

    def services(self) -> list[str]:
        """Return the full names of all services."""
        response = self._ask(Request(list_services="*"))
        return [service.name for service in response.list_services_response.service]

    def file(self, symbol: str) -> FileDescriptorProto:
        """Return the file that defines a service or message."""
        response = self._ask(Request(file_containing_symbol=symbol))
        # Some servers add the imported files.
        files = map(
            FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto
        )
        return next(file for file in files if symbol in _names(file))

    def methods(self, service: str) -> list[str]:
        """Return the names of a service's methods."""
        (found,) = (each for each in self.file(service).service if each.name == service)
        return [method.name for method in found.method]

    def _ask(self, request: Request) -> Response:
        failure: CallError | None = None
        for version in _VERSIONS:
            path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            # The standard leaves open whether reflection needs the security header.
            with self.endpoint.open(path, request.SerializeToString()) as call:
                try:
                    return call.next(Response)
                except CallError as error:
                    if error.code != UNIMPLEMENTED:
                        raise
                    failure = error
        assert failure is not None
        raise failure


def _names(file: FileDescriptorProto) -> set[str]:
    """Return the services and messages of a file without a package."""
    return {s.name for s in file.service} | {m.name for m in file.message_type}
