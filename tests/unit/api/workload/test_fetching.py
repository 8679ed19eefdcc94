"""One call: its SVIDs, or its error."""

from __future__ import annotations

import gc
import sys
from typing import Any

import jwt
import pytest
from cryptography.x509 import load_der_x509_certificate

from agent.api.workload import ServingPolicy
from agent.authority.authority_set import AuthorityKind
from agent.entries.identity import Identity
from agent.errors import (
    AuthorityError,
    NoIdentityError,
    RequestError,
    ResponseSizeError,
    VouchdError,
)
from agent.pb import workloadapi_pb2 as pb
from agent.telemetry.audit import selectors_sha256
from agent.telemetry.plain import to_plain
from agent.transport.grpc_protocol import PREFIX_BYTES
from attestors.api import Selector
from tests.support.fakes import identity
from tests.unit.api.workload.conftest import (
    CALLER,
    HOUR,
    ServedApi,
    bundle_streams,
    fetch_jwt,
    first_response,
    first_x509,
    jwt_request,
    validate,
    x509,
)


def hinted(name: str, hint: str = "") -> Identity:
    return identity(name, hint=hint)


async def test_callers_with_the_same_svids_share_one_response_until_the_keys_are_replaced(
    served: ServedApi,
) -> None:
    first = (await first_response(served)).framed
    assert (await first_response(served)).framed is first
    await served.clock.advance(HOUR)
    assert (await first_response(served)).framed != first
    gc.collect()
    assert sys.getrefcount(first) == 2, "one here, one of the call"


async def test_callers_that_read_bundles_share_one_response_until_the_bundle_changes(
    served: ServedApi,
) -> None:
    first, second = [
        [(await anext(stream)).framed for stream in bundle_streams(served)] for _ in range(2)
    ]
    assert all(one is other for one, other in zip(first, second, strict=True))
    await served.authority.prepare(AuthorityKind.X509)
    third = [(await anext(stream)).framed for stream in bundle_streams(served)]
    assert third[0] != first[0]


async def test_a_response_above_the_limit_is_neither_audited_nor_served(
    served: ServedApi,
) -> None:
    size = len((await first_response(served)).framed) - PREFIX_BYTES
    review = served.api.policy.review
    served.api.policy = ServingPolicy(review=review, response_bytes=size)
    await first_response(served)
    served.api.policy = ServingPolicy(review=review, response_bytes=size - 1)
    issued = len(served.lines.of("svid issued"))
    with pytest.raises(ResponseSizeError, match=f"{size} bytes"):
        await first_response(served)
    served.api.policy = ServingPolicy(review=review, response_bytes=10)
    with pytest.raises(ResponseSizeError):
        await served.api.fetch_jwt_svid(CALLER, jwt_request())
    for stream in bundle_streams(served):
        with pytest.raises(ResponseSizeError):
            await anext(stream)
    assert len(served.lines.of("svid issued")) == issued


async def test_a_validation_whose_answer_is_above_the_limit_fails(served: ServedApi) -> None:
    token = (await fetch_jwt(served, jwt_request())).svids[0].svid
    served.api.policy = ServingPolicy(review=served.api.policy.review, response_bytes=10)
    with pytest.raises(ResponseSizeError):
        await validate(served, pb.ValidateJWTSVIDRequest(audience="a", svid=token))


async def test_svids_come_in_the_order_of_the_entries(served: ServedApi) -> None:
    served.identities = (identity("c"), identity("a"), identity("b"))
    ids = ["spiffe://example.org/c", "spiffe://example.org/a", "spiffe://example.org/b"]
    assert [svid.spiffe_id for svid in (await first_x509(served)).svids] == ids
    tokens = await fetch_jwt(served, jwt_request())
    assert [svid.spiffe_id for svid in tokens.svids] == ids


async def test_the_first_of_several_svids_keeps_a_common_hint(served: ServedApi) -> None:
    served.identities = (
        hinted("a", "x"),
        hinted("b", "x"),
        hinted("c", "y"),
        identity("d"),
        identity("e"),
    )
    hints = ["x", "", "y", "", ""]
    assert [svid.hint for svid in (await first_x509(served)).svids] == hints
    tokens = await fetch_jwt(served, jwt_request())
    assert [svid.hint for svid in tokens.svids] == hints


async def test_a_caller_that_requests_one_spiffe_id_gets_no_other_jwt_svid(
    served: ServedApi,
) -> None:
    served.identities = (identity("a"), identity("b"))
    request = jwt_request(spiffe_id="spiffe://example.org/b")
    [svid] = (await fetch_jwt(served, request)).svids
    assert svid.spiffe_id == "spiffe://example.org/b"


async def test_a_caller_gets_no_jwt_svid_for_a_spiffe_id_that_it_does_not_have(
    served: ServedApi,
) -> None:
    with pytest.raises(NoIdentityError):
        await served.api.fetch_jwt_svid(CALLER, jwt_request(spiffe_id="spiffe://example.org/z"))


@pytest.mark.parametrize(
    "request_",
    [
        pb.JWTSVIDRequest(),
        jwt_request(""),
        jwt_request("a", " "),
        jwt_request(*map(str, range(33))),
        jwt_request("x" * 4097),
        jwt_request(spiffe_id="http://example.org/b"),
        jwt_request(spiffe_id="spiffe://example.org"),
    ],
)
async def test_a_malformed_request_is_refused_before_any_attestation(
    served: ServedApi, request_: pb.JWTSVIDRequest
) -> None:
    served.identities = AssertionError("attested")  # type: ignore[assignment]
    with pytest.raises(RequestError):
        await served.api.fetch_jwt_svid(CALLER, request_)


async def test_a_caller_gets_its_other_svids_when_one_cannot_be_issued(
    served: ServedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.identities = (identity("a"), identity("b"))
    sign = served.authority.sign_x509

    def sign_some(request: Any) -> Any:
        if request.spiffe_id.path == "/a":
            raise AuthorityError("not this one")
        return sign(request)

    monkeypatch.setattr(served.authority, "sign_x509", sign_some)
    for _ in range(20):
        [svid] = (await first_x509(served)).svids
        assert svid.spiffe_id == "spiffe://example.org/b"
    assert served.lines.of("svid not issued")[0]["entry_id"] == "a"
    assert len(served.lines.of("svid not issued")) < 10
    served.identities = (identity("a"),)
    with pytest.raises(AuthorityError, match="not this one"):
        await first_x509(served)


async def test_the_audit_trail_has_every_svid_of_every_message(served: ServedApi) -> None:
    served.identities = (identity("a"), identity("b"))
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    first = x509(await anext(stream))
    served.identities = (identity("b"), identity("c"))
    second = x509(await anext(stream))
    await stream.aclose()
    tokens = (await fetch_jwt(served, jwt_request("x", "y"))).svids
    issued = [
        load_der_x509_certificate(svid.x509_svid)
        for response in (first, second)
        for svid in response.svids
    ]
    lines = served.lines.of("svid issued")
    assert [(line["serial"], line["expires_at"]) for line in lines[:4]] == [
        (f"{leaf.serial_number:x}", to_plain(leaf.not_valid_after_utc)) for leaf in issued
    ]
    assert [line["entry_id"] for line in lines] == ["a", "b", "b", "c", "b", "c"]
    assert [(line["kid"], line["audience"]) for line in lines[4:]] == [
        (jwt.get_unverified_header(token.svid)["kid"], ["x", "y"]) for token in tokens
    ]
    assert {line["kind"] for line in lines[4:]} == {"jwt"}


async def test_the_audit_trail_names_the_evidence_of_each_svid(served: ServedApi) -> None:
    """A later attestation of the same caller may have other selectors."""
    served.selectors = frozenset({Selector("unix", "uid:1001")})
    await first_x509(served)
    await fetch_jwt(served, jwt_request())
    digests = [line.get("selectors_sha256") for line in served.lines.of("svid issued")]
    assert digests == [selectors_sha256(served.selectors)] * 2


async def test_an_svid_that_could_not_be_issued_is_neither_audited_nor_served(
    served: ServedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.identities = (identity("a"), identity("b"))
    sign = served.authority.sign_x509

    def sign_some(request: Any) -> Any:
        if request.spiffe_id.path == "/a":
            raise AuthorityError("not this one")
        return sign(request)

    monkeypatch.setattr(served.authority, "sign_x509", sign_some)
    await first_x509(served)
    assert [line["entry_id"] for line in served.lines.of("svid issued")] == ["b"]
    [stream] = served.streams.served(CALLER)
    assert stream.method == "FetchX509SVID"
    assert [each.entry_id for each in stream.identities] == ["b"]


async def test_wit_svids_are_not_served(served: ServedApi) -> None:
    with pytest.raises(VouchdError, match="WIT"):
        served.api.fetch_wit(CALLER, pb.WITSVIDRequest())


async def test_the_first_response_after_a_suspend_longer_than_every_lifetime_is_valid(
    served: ServedApi,
) -> None:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    await stream.aclose()
    served.clock.set(served.clock.now() + 100 * HOUR)
    [svid] = (await first_x509(served)).svids
    leaf = load_der_x509_certificate(svid.x509_svid)
    assert leaf.not_valid_before_utc <= served.clock.now() < leaf.not_valid_after_utc
    token = (await fetch_jwt(served, jwt_request())).svids[0].svid
    request = pb.ValidateJWTSVIDRequest(audience="a", svid=token)
    assert (await validate(served, request)).spiffe_id
