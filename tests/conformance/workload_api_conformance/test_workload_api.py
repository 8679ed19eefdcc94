"""Workload API: rules for all methods, and for streams over time."""

from __future__ import annotations

from itertools import pairwise

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from . import wire
from .documents import Token, X509Svid, uris
from .expectations import AUDIENCE, History, Validator
from .pb import workload_pb2 as pb
from .reflection import Reflection
from .situations import Situation
from .wire import (
    INVALID_ARGUMENT,
    OK,
    PERMISSION_DENIED,
    UNIMPLEMENTED,
    Endpoint,
    Method,
)


@pytest.mark.parametrize("method", wire.X509_AND_JWT, ids=lambda method: method.name)
def test_WL_01_the_x509_and_jwt_profiles_are_served(server: Endpoint, method: Method) -> None:
    assert server.status(method) != UNIMPLEMENTED


def test_WL_02_the_wit_profile_is_served_entirely_or_not_at_all(server: Endpoint) -> None:
    svid, bundles = (server.status(method) for method in wire.WIT)
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


def test_WL_07_each_message_holds_all_identities(history: History) -> None:
    for message in history.renewals:
        assert [svid.spiffe_id for svid in message.svids] == history.renewing_ids
        for svid in message.svids:
            assert uris(X509Svid(svid).leaf) == [svid.spiffe_id]
            assert all((svid.x509_svid_key, svid.bundle))


def test_WL_08_each_message_differs_from_the_one_before(history: History) -> None:
    for before, after in pairwise(history.renewals):
        assert before.svids[0].x509_svid != after.svids[0].x509_svid
        assert before.svids[1] == after.svids[1]
    for before, after in pairwise(history.losses):
        assert before != after


@pytest.mark.parametrize("method", wire.STREAMS, ids=lambda method: method.name)
def test_WL_09_the_first_message_comes_without_a_change(endpoint: Endpoint, method: Method) -> None:
    with endpoint.stream(method) as call:
        assert call.next(method.response).ByteSize()


def test_WL_12_a_missing_mandatory_field_is_invalid_argument(
    server: Endpoint, token: Token
) -> None:
    assert server.status(wire.JWT_SVID, pb.JWTSVIDRequest()) == INVALID_ARGUMENT
    for request in (
        pb.ValidateJWTSVIDRequest(audience=AUDIENCE[0]),
        pb.ValidateJWTSVIDRequest(svid=token.text),
    ):
        assert server.status(wire.VALIDATE, request) == INVALID_ARGUMENT


def test_WL_14_a_token_of_an_unknown_trust_domain_is_refused(
    token: Token, validate: Validator
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    claims = token.claims | {"sub": "spiffe://unknown.conformance.example/workload"}
    foreign = jwt.encode(claims, key, "ES256", {"kid": token.header["kid"]})
    assert validate.status(foreign) == INVALID_ARGUMENT


def test_WL_70_the_default_identity_comes_first_and_the_order_stays(
    situation: Situation, endpoint: Endpoint, x509_response: pb.X509SVIDResponse
) -> None:
    order = [svid.spiffe_id for svid in x509_response.svids]
    if situation.spiffe_ids:
        assert order == situation.spiffe_ids
    for _ in range(3):
        again = endpoint.ask(wire.X509_SVID, pb.X509SVIDResponse)
        assert [svid.spiffe_id for svid in again.svids] == order
        tokens = endpoint.ask(wire.JWT_SVID, pb.JWTSVIDResponse)
        assert [svid.spiffe_id for svid in tokens.svids] == order


def test_WL_71_no_hint_is_longer_than_1024_bytes(x509_response: pb.X509SVIDResponse) -> None:
    assert all(len(svid.hint.encode()) <= 1024 for svid in x509_response.svids)


def test_WL_73_each_message_holds_the_identities_of_now_and_the_stream_ends_with_the_last(
    history: History,
) -> None:
    served = [[svid.spiffe_id for svid in message.svids] for message in history.losses]
    assert served == [history.losing_ids, history.losing_ids[1:]]
    assert len(served[0]) == 2
    assert history.end.code == PERMISSION_DENIED
