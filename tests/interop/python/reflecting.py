"""A general gRPC tool: check health, read the API by reflection, and call it.

It has no stubs of the Workload API: it creates all message classes from the reflected descriptors.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import grpc
from common import refusal, report
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

TIMEOUT_SECONDS = 20.0
SERVICE = "SpiffeWorkloadAPI"
HEADER = (("workload.spiffe.io", "true"),)


def health(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    report({"status": health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)})


def reflection(channel: grpc.Channel) -> None:
    described = ProtoReflectionDescriptorDatabase(channel)
    service = DescriptorPool(described).FindServiceByName(SERVICE)
    answer = next(call(channel, service, "FetchX509SVID", HEADER))
    bundles = next(call(channel, service, "FetchX509Bundles", HEADER))
    without = call(channel, service, "FetchX509SVID", ())
    report(
        {
            "services": sorted(described.get_services()),
            "methods": sorted(method.name for method in service.methods),
            "spiffe_ids": [svid.spiffe_id for svid in answer.svids],
            "bundles": sorted(bundles.bundles),
            "without_header": refusal(lambda: next(without)),
        }
    )


def call(channel: grpc.Channel, service: Any, name: str, metadata: Any) -> Any:
    method = service.methods_by_name[name]
    stream = channel.unary_stream(
        f"/{SERVICE}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return stream(GetMessageClass(method.input_type)(), metadata=metadata, timeout=TIMEOUT_SECONDS)


with grpc.insecure_channel(os.environ["SPIFFE_ENDPOINT_SOCKET"]) as agent:
    {"health": health, "reflection": reflection}[sys.argv[1]](agent)
