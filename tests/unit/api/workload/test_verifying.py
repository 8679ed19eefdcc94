"""Bundles and the validation of JWT-SVIDs."""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import pytest

from agent.authority.keystore import Keystore
from agent.errors import NoIdentityError, RequestError
from agent.pb import workloadapi_pb2 as pb
from tests.unit.api.workload.conftest import (
    CALLER,
    HOUR,
    ServedApi,
    bundle_streams,
    decoded,
    fetch_jwt,
    first_x509,
    jwt_request,
    validate,
)


@pytest.mark.parametrize(
    "request_",
    [pb.ValidateJWTSVIDRequest(audience="a"), pb.ValidateJWTSVIDRequest(svid="x.y.z")],
)
async def test_validation_needs_the_audience_and_the_token(
    served: ServedApi, request_: pb.ValidateJWTSVIDRequest
) -> None:
    with pytest.raises(RequestError, match="must be specified"):
        await served.api.validate_jwt_svid(CALLER, request_)


async def test_a_token_of_this_authority_is_valid_and_its_claims_are_returned(
    served: ServedApi,
) -> None:
    token = (await fetch_jwt(served, jwt_request("a", "b"))).svids[0].svid
    request = pb.ValidateJWTSVIDRequest(audience="b", svid=token)
    valid = await validate(served, request)
    assert valid.spiffe_id == "spiffe://example.org/a"
    assert list(cast("Any", valid.claims["aud"])) == ["a", "b"]
    assert valid.claims["sub"] == "spiffe://example.org/a"
    assert valid.claims["exp"] == int((served.clock.now() + HOUR).timestamp())


async def test_an_expired_token_is_not_valid(served: ServedApi) -> None:
    token = (await fetch_jwt(served, jwt_request())).svids[0].svid
    served.clock.set(served.clock.now() + HOUR + dt.timedelta(minutes=1))
    with pytest.raises(RequestError, match="expired"):
        await served.api.validate_jwt_svid(
            CALLER, pb.ValidateJWTSVIDRequest(audience="a", svid=token)
        )


async def test_a_caller_without_an_identity_gets_no_bundle_and_no_validation(
    served: ServedApi,
) -> None:
    served.identities = NoIdentityError("none")
    for stream in bundle_streams(served):
        with pytest.raises(NoIdentityError):
            await anext(stream)
    with pytest.raises(NoIdentityError):
        await served.api.validate_jwt_svid(
            CALLER, pb.ValidateJWTSVIDRequest(audience="a", svid="x.y.z")
        )


async def test_allow_unauthenticated_verifiers_gives_every_caller_bundles_and_validation(
    keystore: Keystore,
) -> None:
    served = ServedApi(keystore, open_verifiers=True)
    token = (await fetch_jwt(served, jwt_request())).svids[0].svid
    served.identities = NoIdentityError("none")
    certificates, keys = [await anext(stream) for stream in bundle_streams(served)]
    for bundles in (
        decoded(pb.X509BundlesResponse, certificates).bundles,
        decoded(pb.JWTBundlesResponse, keys).bundles,
    ):
        assert list(bundles) == ["spiffe://example.org"]
    request = pb.ValidateJWTSVIDRequest(audience="a", svid=token)
    assert (await validate(served, request)).spiffe_id
    with pytest.raises(NoIdentityError):
        await first_x509(served)
    served.authority.close()
