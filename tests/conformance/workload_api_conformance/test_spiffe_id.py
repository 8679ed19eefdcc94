"""SPIFFE-ID: IDs in SVIDs and in signing certificates."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from . import wire
from .documents import Token, X509Svid, trust_domain, uris
from .expectations import Validator
from .pb import workload_pb2 as pb
from .situations import Situation


def test_ID_15_an_id_of_2048_bytes_is_issued_and_validated(several: Situation) -> None:
    (longest,) = (each for each in several.spiffe_ids if len(each) == 2048)
    endpoint = several.endpoint
    response = endpoint.ask(wire.X509_SVID, pb.X509SVIDResponse)
    (svid,) = (X509Svid(s) for s in response.svids if s.spiffe_id == longest)
    assert uris(svid.leaf) == [longest]
    request = pb.JWTSVIDRequest(audience=["any"], spiffe_id=longest)
    (token,) = endpoint.ask(wire.JWT_SVID, pb.JWTSVIDResponse, request).svids
    assert Validator(endpoint)(token.svid, "any").spiffe_id == longest


def test_SV_02_the_authority_has_a_spiffe_id(authorities: list[x509.Certificate]) -> None:
    for authority in authorities:
        (uri,) = uris(authority)
        assert uri.startswith("spiffe://")


def test_SV_03_the_authority_belongs_to_the_trust_domain_of_its_svids(
    authorities: list[x509.Certificate], own_domain: str
) -> None:
    assert {trust_domain(uri) for authority in authorities for uri in uris(authority)} == {
        own_domain
    }


def test_SV_04_the_id_of_the_authority_has_no_path(authorities: list[x509.Certificate]) -> None:
    assert all(uri.count("/") == 2 for authority in authorities for uri in uris(authority))


def test_SV_05_the_authority_is_signed_by_itself(authorities: list[x509.Certificate]) -> None:
    for authority in authorities:
        authority.verify_directly_issued_by(authority)


def test_SV_06_the_signature_covers_the_id_and_the_key(
    x509_svids: list[X509Svid], tokens: list[Token], jwks: dict[str, object]
) -> None:
    for svid in x509_svids:
        svid.verify()
        assert uris(svid.leaf) == [svid.message.spiffe_id]
        key = load_der_private_key(svid.message.x509_svid_key, password=None)
        assert svid.leaf.public_key() == key.public_key()
    for token in tokens:
        token.verify(jwks)
