"""A workload with `spiffe-defakto` (PyPI)."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import grpc
from common import WRONG_AUDIENCE, fingerprints, report
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe_defakto import (
    X509SVID,
    JwtSVID,
    SpiffeError,
    SpiffeErrorCode,
    TrustDomain,
    WorkloadAPIClient,
    X509Context,
    parse_and_validate_jwt_svid,
    verify_x509_svid,
)
from spiffe_defakto._generated import workloadapi_pb2, workloadapi_pb2_grpc
from spiffe_defakto.local_workload_api import LocalWorkloadAPIClient

HEADER = (("workload.spiffe.io", "true"),)
RETRY_SECONDS = 0.1


async def fetch(client: LocalWorkloadAPIClient, audiences: list[str]) -> None:
    context = await first_context(client)
    own = context.default_svid().id.trust_domain
    bundle = await client.x509.get_bundle_for_trust_domain(own)
    report(
        {
            "svids": [await describe(client, svid) for svid in context.svids],
            "x509_bundles": {own.name: fingerprints(bundle.x509_authorities)},
            "x509_svid_bundle": {
                name: fingerprints(bundle.x509_authorities)
                for name, bundle in context.bundles.items()
            },
            "jwt": await fetch_jwt(client, audiences),
        }
    )


async def first_context(client: LocalWorkloadAPIClient) -> X509Context:
    watch = client.watch_x509_context()
    try:
        return await anext(watch)
    finally:
        await watch.aclose()


async def describe(client: LocalWorkloadAPIClient, svid: X509SVID) -> dict[str, Any]:
    chain = [certificate.public_bytes(Encoding.DER) for certificate in svid.certificates]
    return {
        "spiffe_id": str(svid.id),
        "verified_as": str(await verify_x509_svid(chain, client.x509)),
        "key_matches": svid.private_key.public_key() == svid.certificates[0].public_key(),
    }


async def fetch_jwt(client: LocalWorkloadAPIClient, audiences: list[str]) -> dict[str, Any]:
    svid: JwtSVID = await client.jwt.fetch_svid(audiences)

    async def validate(audience: str) -> str:
        return str((await parse_and_validate_jwt_svid(svid.token, client.jwt, [audience])).id)

    async def ask(audience: str) -> str:
        return await ask_agent(svid.token, audience)

    return {
        "spiffe_id": str(svid.id),
        "audience": sorted(svid.audience),
        "validated_by_client": [await validate(audience) for audience in audiences],
        "validated_by_agent": [await ask(audience) for audience in audiences],
        "wrong_audience_by_client": await refusal(validate(WRONG_AUDIENCE)),
        "wrong_audience_by_agent": await refusal(ask(WRONG_AUDIENCE)),
    }


async def ask_agent(token: str, audience: str) -> str:
    """Call ValidateJWTSVID with the library's stubs; the library has no method for it."""
    async with grpc.aio.insecure_channel(os.environ["SPIFFE_ENDPOINT_SOCKET"]) as channel:
        stub = workloadapi_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        request = workloadapi_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return str((await stub.ValidateJWTSVID(request, metadata=HEADER)).spiffe_id)


async def refusal(call: Any) -> str:
    try:
        await call
    except Exception as error:  # noqa: BLE001 - the library may raise any type
        return f"{type(error).__name__}: {error}"
    return ""


async def refused(client: LocalWorkloadAPIClient) -> None:
    own = TrustDomain.parse("example.org")
    report(
        {
            "x509": await refusal(client.x509.get_svid()),
            "x509_bundles": await refusal(client.x509.get_bundle_for_trust_domain(own)),
            "jwt": await refusal(client.jwt.fetch_svid(["any-audience"])),
            "jwt_bundles": await refusal(client.jwt.get_bundle_for_trust_domain(own)),
        }
    )


async def watch(client: LocalWorkloadAPIClient) -> None:
    """Report each update and reconnect; the library does not reconnect by itself."""
    while True:
        try:
            async for context in client.watch_x509_context():
                report_context(context)
        except SpiffeError as error:
            if error.code is not SpiffeErrorCode.WORKLOAD_API_UNAVAILABLE:
                raise
            await asyncio.sleep(RETRY_SECONDS)


def report_context(context: X509Context) -> None:
    svid = context.default_svid()
    leaf = svid.certificates[0]
    bundle = context.bundles[svid.id.trust_domain.name]
    report(
        {
            "spiffe_id": str(svid.id),
            "serial": f"{leaf.serial_number:x}",
            "expires_at": svid.expires_at.isoformat(),
            "authorities": fingerprints(bundle.x509_authorities),
        }
    )


async def main(command: str, arguments: list[str]) -> None:
    async with WorkloadAPIClient() as client:
        match command:
            case "fetch":
                await fetch(client, arguments)
            case "refused":
                await refused(client)
            case "watch":
                await watch(client)


asyncio.run(main(sys.argv[1], sys.argv[2:]))
