"""Workload API: what its methods answer, and what its streams do as time passes."""
# The ids keep the form they have in requirements.md.
# ruff: noqa: N802

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key
from google.protobuf.json_format import MessageToDict

from agent.pb import workloadapi_pb2 as pb
from tests.conformance import wire
from tests.conformance.conftest import (
    AUDIENCE,
    LASTING,
    LOST_FIRST,
    LOST_LAST,
    RENEWED,
    SEVERAL,
    History,
    Validator,
)
from tests.conformance.documents import (
    Token,
    X509Svid,
    base64url,
    certificates,
    encode,
    is_ca,
    json_object,
    trust_domain,
    uris,
)
from tests.conformance.reflection import Reflection
from tests.conformance.wire import (
    INVALID_ARGUMENT,
    OK,
    PERMISSION_DENIED,
    UNIMPLEMENTED,
    CallError,
    Endpoint,
    Method,
)

_AT_ONCE_SECONDS = 5.0
_NOT_MINE = "spiffe://{}/conformance/nobody/has/this"


def _hints(svids: Any) -> list[str]:
    return [svid.hint for svid in svids if svid.hint]


def _is_der(data: bytes) -> bool:
    return bool(data) and not data.startswith(b"-----BEGIN")


# --- general -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", wire.X509_AND_JWT, ids=lambda method: method.name)
def test_WL_01_the_x509_and_jwt_profiles_are_served(given: Endpoint, method: Method) -> None:
    assert given.status(method) != UNIMPLEMENTED


def test_WL_02_the_wit_profile_is_served_entirely_or_not_at_all(given: Endpoint) -> None:
    svid, bundles = (given.status(method) for method in wire.WIT)
    assert (svid == UNIMPLEMENTED) == (bundles == UNIMPLEMENTED)
    assert {svid, bundles} <= {OK, UNIMPLEMENTED}


def test_WL_03_no_method_and_no_field_is_added(reflection: Reflection) -> None:
    served = reflection.file(wire.SERVICE)
    (service,) = (each for each in served.service if each.name == wire.SERVICE)
    standard = pb.DESCRIPTOR.services_by_name[wire.SERVICE]
    for method in service.method:
        known = standard.methods_by_name[method.name]
        assert method.input_type == f".{known.input_type.full_name}"
        assert method.output_type == f".{known.output_type.full_name}"
    for message in served.message_type:
        known_fields = pb.DESCRIPTOR.message_types_by_name[message.name].fields_by_name
        assert {f.name: f.number for f in message.field}.items() <= {
            name: field.number for name, field in known_fields.items()
        }.items()


@pytest.mark.needs_control
def test_WL_07_each_message_holds_all_identities(history: History) -> None:
    for message in history.renewals:
        assert [svid.spiffe_id for svid in message.svids] == [RENEWED, LASTING]
        for svid in message.svids:
            assert uris(X509Svid(svid).leaf) == [svid.spiffe_id]
            assert all((svid.x509_svid_key, svid.bundle))


@pytest.mark.needs_control
def test_WL_08_each_message_says_something_new(history: History) -> None:
    for before, after in pairwise(history.renewals):
        assert before.svids[0].x509_svid != after.svids[0].x509_svid
        assert before.svids[1] == after.svids[1]
    for before, after in pairwise(history.losses):
        assert before != after


@pytest.mark.parametrize("method", wire.STREAMS, ids=lambda method: method.name)
def test_WL_09_the_first_message_comes_at_once(endpoint: Endpoint, method: Method) -> None:
    with endpoint.stream(method, _AT_ONCE_SECONDS) as call:
        assert call.next(method.response).ByteSize()


def test_WL_12_a_missing_mandatory_field_is_invalid_argument(given: Endpoint, token: Token) -> None:
    assert given.status(wire.JWT_SVID, pb.JWTSVIDRequest()) == INVALID_ARGUMENT
    for request in (
        pb.ValidateJWTSVIDRequest(audience=AUDIENCE[0]),
        pb.ValidateJWTSVIDRequest(svid=token.text),
    ):
        assert given.status(wire.VALIDATE, request) == INVALID_ARGUMENT


def test_WL_14_a_token_of_an_unknown_trust_domain_is_refused(
    token: Token, validate: Validator
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    claims = token.claims | {"sub": "spiffe://unknown.conformance.example/workload"}
    foreign = jwt.encode(claims, key, "ES256", {"kid": token.header["kid"]})
    assert validate.status(foreign) == INVALID_ARGUMENT


# --- X.509 ---------------------------------------------------------------------------------------


def test_WL_21_there_is_one_svid_for_each_identity(
    endpoint: Endpoint, several: Endpoint, x509_response: pb.X509SVIDResponse
) -> None:
    served = [svid.spiffe_id for svid in x509_response.svids]
    assert served
    assert len(set(served)) == len(served)
    if endpoint is several:
        assert set(served) == set(SEVERAL)


def test_WL_22_all_fields_but_the_hint_are_filled(x509_response: pb.X509SVIDResponse) -> None:
    for svid in x509_response.svids:
        assert all((svid.spiffe_id, svid.x509_svid, svid.x509_svid_key, svid.bundle))


def test_WL_23_no_two_x509_svids_share_a_hint(x509_response: pb.X509SVIDResponse) -> None:
    hints = _hints(x509_response.svids)
    assert len(set(hints)) == len(hints)


@pytest.mark.needs_control
def test_WL_25_without_identity_x509_svids_are_denied(stranger: Endpoint) -> None:
    assert stranger.status(wire.X509_SVID) == PERMISSION_DENIED


def test_WL_27_the_chain_is_der_with_the_leaf_first(x509_svids: list[X509Svid]) -> None:
    for svid in x509_svids:
        leaf, *intermediates = certificates(svid.message.x509_svid)
        assert not is_ca(leaf)
        assert all(is_ca(certificate) for certificate in intermediates)
        svid.verify()


def test_WL_28_the_key_is_pkcs8_der_in_the_clear(x509_svids: list[X509Svid]) -> None:
    for svid in x509_svids:
        data = svid.message.x509_svid_key
        key = load_der_private_key(data, password=None)
        assert key.public_key() == svid.leaf.public_key()
        # RFC 5208: a SEQUENCE that begins with version 0. SEC 1 and PKCS#1 have version 1 or no
        # algorithm behind it, which is the SEQUENCE that has to follow.
        head = 2 + (data[1] & 0x7F if data[1] & 0x80 else 0)
        assert data[head : head + 4] == b"\x02\x01\x00\x30"


def test_WL_29_the_bundle_is_der(x509_svids: list[X509Svid]) -> None:
    for svid in x509_svids:
        assert _is_der(svid.message.bundle)
        assert svid.authorities


def test_WL_30_bundles_are_keyed_by_trust_domain_id_and_der(
    x509_bundles: dict[str, bytes], x509_response: pb.X509SVIDResponse
) -> None:
    for key, bundle in [*x509_bundles.items(), *x509_response.federated_bundles.items()]:
        assert key == f"spiffe://{trust_domain(key)}"
        assert _is_der(bundle)
        assert certificates(bundle)


def test_WL_32_the_own_trust_domain_has_an_x509_bundle(
    x509_bundles: dict[str, bytes], x509_svids: list[X509Svid]
) -> None:
    for svid in x509_svids:
        assert certificates(x509_bundles[f"spiffe://{svid.trust_domain}"]) == svid.authorities


@pytest.mark.needs_control
def test_WL_33_without_identity_x509_bundles_are_denied(stranger: Endpoint) -> None:
    assert stranger.status(wire.X509_BUNDLES) == PERMISSION_DENIED


# --- JWT -----------------------------------------------------------------------------------------


def test_WL_40_an_audience_is_mandatory_and_ends_up_in_the_token(
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
    hints = _hints(jwt_response.svids)
    assert len(set(hints)) == len(hints)


def test_WL_45_a_token_for_an_id_of_somebody_else_is_denied(
    endpoint: Endpoint, own_domain: str
) -> None:
    request = pb.JWTSVIDRequest(audience=AUDIENCE, spiffe_id=_NOT_MINE.format(own_domain))
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


@pytest.mark.needs_control
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
    # Signed with our key or not: the claims of a token choose its bundle.
    for domain in ("unknown.conformance.example", f"sub.{trust_domain(token.claims['sub'])}"):
        foreign = token.claims | {"sub": f"spiffe://{domain}/workload"}
        text = ".".join([token.parts[0], encode(foreign), token.parts[2]])
        assert validate.status(text) == INVALID_ARGUMENT


# --- WIT -----------------------------------------------------------------------------------------


@pytest.fixture
def wit_response(endpoint: Endpoint) -> pb.WITSVIDResponse:
    try:
        return endpoint.ask(wire.WIT_SVID, pb.WITSVIDResponse)
    except CallError as error:
        if error.code != UNIMPLEMENTED:
            raise
        pytest.skip("the WIT profile is not served here")


@pytest.fixture
def wit_bundles(endpoint: Endpoint, wit_response: pb.WITSVIDResponse) -> dict[str, str]:
    assert wit_response.svids
    return dict(endpoint.ask(wire.WIT_BUNDLES, pb.WITBundlesResponse).bundles)


def test_WL_60_there_is_a_wit_svid_for_each_identity_or_the_one_asked_for(
    endpoint: Endpoint, wit_response: pb.WITSVIDResponse, x509_response: pb.X509SVIDResponse
) -> None:
    identities = [svid.spiffe_id for svid in x509_response.svids]
    assert sorted(svid.spiffe_id for svid in wit_response.svids) == sorted(identities)
    request = pb.WITSVIDRequest(spiffe_id=identities[-1])
    answer = endpoint.ask(wire.WIT_SVID, pb.WITSVIDResponse, request)
    assert [svid.spiffe_id for svid in answer.svids] == identities[-1:]


def test_WL_61_there_is_at_least_one_wit_svid(wit_response: pb.WITSVIDResponse) -> None:
    assert wit_response.svids


def test_WL_62_a_wit_svid_has_an_id_a_token_and_a_private_jwk(
    wit_response: pb.WITSVIDResponse,
) -> None:
    for svid in wit_response.svids:
        token, key = Token(svid.wit_svid), json_object(svid.wit_svid_key)
        assert token.claims["sub"] == svid.spiffe_id
        public = token.claims["cnf"]["jwk"]
        assert "d" in key
        assert "d" not in public
        assert {name: key.get(name) for name in public.keys() - {"alg", "kid", "use"}} == {
            name: public[name] for name in public.keys() - {"alg", "kid", "use"}
        }


def test_WL_63_no_two_wit_svids_share_a_hint(wit_response: pb.WITSVIDResponse) -> None:
    hints = _hints(wit_response.svids)
    assert len(set(hints)) == len(hints)


def test_WL_64_a_wit_svid_for_an_id_of_somebody_else_is_denied(
    endpoint: Endpoint, wit_response: pb.WITSVIDResponse, own_domain: str
) -> None:
    assert wit_response.svids
    request = pb.WITSVIDRequest(spiffe_id=_NOT_MINE.format(own_domain))
    assert endpoint.status(wire.WIT_SVID, request) == PERMISSION_DENIED


def test_WL_65_the_own_trust_domain_has_a_wit_bundle(
    wit_bundles: dict[str, str], own_domain: str
) -> None:
    assert f"spiffe://{own_domain}" in wit_bundles


def test_WL_66_the_keys_of_a_wit_bundle_have_distinct_key_ids(
    wit_bundles: dict[str, str],
) -> None:
    for bundle in wit_bundles.values():
        ids = [key["kid"] for key in json.loads(bundle)["keys"]]
        assert len(set(ids)) == len(ids)


# --- several identities, and the passing of time -------------------------------------------------


def test_WL_70_the_default_identity_comes_first_and_the_order_stays(
    endpoint: Endpoint, several: Endpoint, x509_response: pb.X509SVIDResponse
) -> None:
    order = [svid.spiffe_id for svid in x509_response.svids]
    if endpoint is several:
        assert order == list(SEVERAL)
    for _ in range(3):
        again = endpoint.ask(wire.X509_SVID, pb.X509SVIDResponse)
        assert [svid.spiffe_id for svid in again.svids] == order
        tokens = endpoint.ask(wire.JWT_SVID, pb.JWTSVIDResponse)
        assert [svid.spiffe_id for svid in tokens.svids] == order


def test_WL_71_no_hint_is_longer_than_1024_bytes(x509_response: pb.X509SVIDResponse) -> None:
    assert all(len(svid.hint.encode()) <= 1024 for svid in x509_response.svids)


@pytest.mark.needs_control
def test_WL_73_entitlement_is_asked_anew_and_its_end_ends_the_stream(history: History) -> None:
    served = [[svid.spiffe_id for svid in message.svids] for message in history.losses]
    assert served == [[LOST_FIRST, LOST_LAST], [LOST_LAST]]
    assert history.end.code == PERMISSION_DENIED
