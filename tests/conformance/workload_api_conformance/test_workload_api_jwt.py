"""Workload API: JWT-SVIDs, their bundles and validation."""

from __future__ import annotations

from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.json_format import MessageToDict

from . import wire
from .documents import (
    Token,
    base64url,
    encode,
    hints_of,
    json_object,
    trust_domain,
)
from .expectations import AUDIENCE, FOREIGN_ID, Validator
from .pb import workload_pb2 as pb
from .wire import INVALID_ARGUMENT, PERMISSION_DENIED, Endpoint


def test_WL_40_an_audience_is_mandatory_and_part_of_the_token(
    endpoint: Endpoint, tokens: list[Token]
) -> None:
    assert endpoint.status(wire.JWT_SVID, pb.JWTSVIDRequest()) == INVALID_ARGUMENT
    assert all(token.audience == AUDIENCE for token in tokens)


def test_WL_41_without_a_spiffe_id_there_is_a_token_for_each_identity(
    jwt_response: pb.JWTSVIDResponse, x509_response: pb.X509SVIDResponse, endpoint: Endpoint
) -> None:
    identities = [svid.spiffe_id for svid in x509_response.svids]
    assert sorted(svid.spiffe_id for svid in jwt_response.svids) == sorted(identities)
    for identity in identities:
        request = pb.JWTSVIDRequest(audience=AUDIENCE, spiffe_id=identity)
        answer = endpoint.ask(wire.JWT_SVID, pb.JWTSVIDResponse, request)
        assert [svid.spiffe_id for svid in answer.svids] == [identity]


def test_WL_42_there_is_at_least_one_token(jwt_response: pb.JWTSVIDResponse) -> None:
    assert jwt_response.svids


def test_WL_43_all_fields_of_a_jwt_svid_but_the_hint_are_filled(
    jwt_response: pb.JWTSVIDResponse,
) -> None:
    assert all(svid.spiffe_id and svid.svid for svid in jwt_response.svids)


def test_WL_44_no_two_jwt_svids_share_a_hint(jwt_response: pb.JWTSVIDResponse) -> None:
    hints = hints_of(jwt_response.svids)
    assert len(set(hints)) == len(hints)


def test_WL_45_a_token_for_an_id_that_is_not_the_callers_is_denied(
    endpoint: Endpoint, own_domain: str
) -> None:
    request = pb.JWTSVIDRequest(audience=AUDIENCE, spiffe_id=FOREIGN_ID.format(own_domain))
    assert endpoint.status(wire.JWT_SVID, request) == PERMISSION_DENIED


def test_WL_46_the_own_trust_domain_has_a_jwt_bundle(
    jwt_bundles: dict[str, bytes], tokens: list[Token]
) -> None:
    for token in tokens:
        key = f"spiffe://{trust_domain(token.claims['sub'])}"
        token.verify(json_object(jwt_bundles[key]))


def test_WL_47_each_jwt_bundle_is_a_jwk_set(
    jwt_bundles: dict[str, bytes], tokens: list[Token], jwks: dict[str, Any]
) -> None:
    for bundle in jwt_bundles.values():
        for key in json_object(bundle)["keys"]:
            assert isinstance(key["kty"], str)
            assert not {"d", "p", "q", "k"} & key.keys(), "there is a private or shared key"
    for token in tokens:
        token.verify(jwks)


def test_WL_48_there_are_no_keys_for_other_purposes(jwt_bundles: dict[str, bytes]) -> None:
    found = [key for bundle in jwt_bundles.values() for key in json_object(bundle)["keys"]]
    assert found
    assert {key.get("use") for key in found} <= {None, "jwt-svid", "sig"}
    assert not any("x5c" in key for key in found)


def test_WL_49_without_identity_jwt_bundles_are_denied(stranger: Endpoint) -> None:
    assert stranger.status(wire.JWT_BUNDLES) == PERMISSION_DENIED


def test_WL_50_a_good_token_is_valid_and_an_altered_one_is_not(
    token: Token, validate: Validator
) -> None:
    assert validate(token.text).spiffe_id == token.claims["sub"]
    other_key = jwt.encode(
        token.claims, ec.generate_private_key(ec.SECP256R1()), "ES256", token.header
    )
    for bad in (
        other_key,
        token.altered(claims={"exp": token.claims["exp"] + 3600}),
        token.altered(claims={"sub": f"{token.claims['sub']}/more"}),
        token.altered(header={"typ": "JOSE"}),
        token.altered(header={"kid": "unknown"}),
        ".".join([*token.parts[:2], base64url(bytes(64))]),
        ".".join([*token.parts[:2], ""]),
        ".".join(token.parts[:2]),
        f"{token.text}.",
        f" {token.text}",
        "not a token",
    ):
        assert validate.status(bad) == INVALID_ARGUMENT, bad


def test_WL_51_the_claims_are_returned(token: Token, validate: Validator) -> None:
    claims = MessageToDict(validate(token.text).claims)
    assert claims["sub"] == token.claims["sub"]
    assert claims["exp"] == token.claims["exp"]
    assert claims["aud"] == token.audience


def test_WL_52_all_fields_of_validation_are_mandatory(token: Token, validate: Validator) -> None:
    response = validate(token.text)
    assert response.spiffe_id
    assert len(response.claims)
    assert validate.status(token.text, "") == INVALID_ARGUMENT
    assert validate.status("") == INVALID_ARGUMENT


def test_WL_53_the_bundle_is_that_of_the_subject_s_trust_domain(
    token: Token, validate: Validator
) -> None:
    # The subject selects the bundle; the signing key does not.
    for domain in ("unknown.conformance.example", f"sub.{trust_domain(token.claims['sub'])}"):
        foreign = token.claims | {"sub": f"spiffe://{domain}/workload"}
        text = ".".join([token.parts[0], encode(foreign), token.parts[2]])
        assert validate.status(text) == INVALID_ARGUMENT
