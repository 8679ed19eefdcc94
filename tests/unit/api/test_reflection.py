"""Server reflection, both versions, as clients use it to list and describe services."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DESCRIPTOR, FieldOptions, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb

from agent.api.guard import Guard
from agent.api.health import Health
from agent.api.reflection import MAX_QUESTIONS
from agent.api.servers import make_public_services
from agent.transport.service import StatusCode
from tests.support.fakes import FakeLog, quotas
from tests.unit.api.conftest import FakeCall

VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
EVERY = pytest.mark.parametrize("version", VERSIONS)
LIST = pb.ServerReflectionRequest(list_services="")


class WorkloadApi:
    """An API of which only the name counts."""

    service = "SpiffeWorkloadAPI"

    def methods(self, _guard: Guard) -> dict[bytes, Any]:
        return {}


async def reflect(version: str, *requests: Any) -> FakeCall:
    lines = FakeLog()
    guard = Guard(quotas(), lines.audit().refused, lines.log)
    services = make_public_services((WorkloadApi(),), guard, Health((), tuple))
    made = FakeCall(f"/{version}/ServerReflectionInfo", *requests)
    await made.of(services)
    return made


async def answer(version: str, **asked: Any) -> pb.ServerReflectionResponse:
    """Ask one question. Every answer repeats it."""
    request = pb.ServerReflectionRequest(**asked)
    made = await reflect(version, request)
    [response] = made.responses(pb.ServerReflectionResponse)
    assert made.code is StatusCode.OK
    assert response.original_request == request
    return response


def files(response: pb.ServerReflectionResponse) -> list[FileDescriptorProto]:
    encoded = response.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(each) for each in encoded]


@EVERY
async def test_the_list_has_every_service_of_the_socket(version: str) -> None:
    listed = (await answer(version, list_services="")).list_services_response.service
    names = {"SpiffeWorkloadAPI", "grpc.health.v1.Health", *VERSIONS}
    assert [each.name for each in listed] == sorted(names)


@EVERY
async def test_every_listed_service_can_be_described(version: str) -> None:
    """As clients do: load the files, dependencies first, and find the service."""
    for service in ("SpiffeWorkloadAPI", "grpc.health.v1.Health", *VERSIONS):
        found = files(await answer(version, file_containing_symbol=service))
        pool = DescriptorPool()
        for file in reversed(found):
            pool.Add(file)
        assert pool.FindServiceByName(service).methods


async def test_a_file_comes_with_the_files_that_it_imports() -> None:
    found = files(await answer(VERSIONS[0], file_containing_symbol="SpiffeWorkloadAPI"))
    assert [file.name for file in found] == ["workloadapi.proto", "google/protobuf/struct.proto"]


@pytest.mark.parametrize(
    "asked",
    [
        {"file_containing_symbol": "SpiffeWorkloadAPI.FetchX509SVID"},
        {"file_containing_symbol": "X509SVIDResponse"},
        {"file_by_filename": "workloadapi.proto"},
    ],
)
async def test_a_file_is_found_by_its_name_and_by_all_that_it_declares(asked: Any) -> None:
    assert files(await answer(VERSIONS[1], **asked))[0].name == "workloadapi.proto"


async def test_the_messages_of_both_versions_are_the_same() -> None:
    alpha, v1 = [
        files(await answer(VERSIONS[0], file_containing_symbol=version))[0]
        for version in reversed(VERSIONS)
    ]
    assert v1.package == "grpc.reflection.v1"
    assert [each.name for each in v1.message_type] == [each.name for each in alpha.message_type]
    assert files(await answer(VERSIONS[0], file_by_filename=v1.name)) == [v1]
    assert b"v1alpha" not in v1.SerializeToString()


@pytest.mark.parametrize(
    "asked",
    [
        {"file_containing_symbol": "no.Such"},
        {"file_containing_symbol": "SpiffeWorkloadAPI.NoSuch"},
        {"file_by_filename": "no-such.proto"},
        {"all_extension_numbers_of_type": "no.Such"},
        {"file_containing_extension": {"containing_type": "no.Such", "extension_number": 1}},
        {
            "file_containing_extension": {
                "containing_type": FieldOptions.DESCRIPTOR.full_name,
                "extension_number": 99999,
            }
        },
    ],
)
async def test_what_does_not_exist_is_not_found_and_the_call_goes_on(asked: Any) -> None:
    made = await reflect(VERSIONS[0], pb.ServerReflectionRequest(**asked), LIST)
    first, second = made.responses(pb.ServerReflectionResponse)
    assert first.error_response.error_code == StatusCode.NOT_FOUND
    assert second.list_services_response.service


async def test_extensions_of_a_message_are_listed() -> None:
    name = FieldOptions.DESCRIPTOR.full_name
    response = await answer(VERSIONS[0], all_extension_numbers_of_type=name)
    found = response.all_extension_numbers_response
    assert found.base_type_name == name
    for number in found.extension_number:
        asked = {"containing_type": name, "extension_number": number}
        assert files(await answer(VERSIONS[0], file_containing_extension=asked))


async def test_a_question_without_content_is_an_error_of_that_question() -> None:
    response = await answer(VERSIONS[0])
    assert response.error_response.error_code == StatusCode.INVALID_ARGUMENT


async def test_a_malformed_question_ends_the_call() -> None:
    made = await reflect(VERSIONS[0], LIST, b"\xff\xff", LIST)
    assert (made.code, len(made.sent)) == (StatusCode.INVALID_ARGUMENT, 1)


async def test_a_call_has_a_bound_of_questions() -> None:
    made = await reflect(VERSIONS[0], *[LIST] * (MAX_QUESTIONS + 1))
    assert (made.code, len(made.sent)) == (StatusCode.UNAVAILABLE, MAX_QUESTIONS)


def test_the_file_of_v1_is_in_no_common_pool() -> None:
    with pytest.raises(KeyError):
        DESCRIPTOR.pool.FindServiceByName(VERSIONS[0])
