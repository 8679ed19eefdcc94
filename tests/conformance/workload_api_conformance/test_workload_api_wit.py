"""Workload API: WIT-SVIDs and their bundles."""

from __future__ import annotations

import json

import pytest

from . import wire
from .documents import Token, hints_of, json_object
from .expectations import FOREIGN_ID
from .pb import workload_pb2 as pb
from .wire import PERMISSION_DENIED, UNIMPLEMENTED, CallError, Endpoint


@pytest.fixture
def wit_response(endpoint: Endpoint) -> pb.WITSVIDResponse:
    try:
        return endpoint.ask(wire.WIT_SVID, pb.WITSVIDResponse)
    except CallError as error:
        if error.code != UNIMPLEMENTED:
            raise
        pytest.skip("the server has no WIT profile")


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
    hints = hints_of(wit_response.svids)
    assert len(set(hints)) == len(hints)


def test_WL_64_a_wit_svid_for_an_id_that_is_not_the_callers_is_denied(
    endpoint: Endpoint, wit_response: pb.WITSVIDResponse, own_domain: str
) -> None:
    assert wit_response.svids
    request = pb.WITSVIDRequest(spiffe_id=FOREIGN_ID.format(own_domain))
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
