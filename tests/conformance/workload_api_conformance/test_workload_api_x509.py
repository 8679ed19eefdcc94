"""Workload API: X.509-SVIDs and their bundles."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import load_der_private_key

from . import wire
from .documents import X509Svid, certificates, hints_of, is_ca, trust_domain
from .pb import workload_pb2 as pb
from .situations import Situation
from .wire import PERMISSION_DENIED, Endpoint


def _is_der(data: bytes) -> bool:
    return bool(data) and not data.startswith(b"-----BEGIN")


def test_WL_21_there_is_one_svid_for_each_identity(
    situation: Situation, x509_response: pb.X509SVIDResponse
) -> None:
    served = [svid.spiffe_id for svid in x509_response.svids]
    assert served
    assert len(set(served)) == len(served)
    if situation.spiffe_ids:
        assert set(served) == set(situation.spiffe_ids)


def test_WL_22_all_fields_but_the_hint_are_filled(x509_response: pb.X509SVIDResponse) -> None:
    for svid in x509_response.svids:
        assert all((svid.spiffe_id, svid.x509_svid, svid.x509_svid_key, svid.bundle))


def test_WL_23_no_two_x509_svids_share_a_hint(x509_response: pb.X509SVIDResponse) -> None:
    hints = hints_of(x509_response.svids)
    assert len(set(hints)) == len(hints)


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
        # RFC 5208: version 0, then the algorithm's SEQUENCE. SEC 1 begins with version 1; PKCS#1
        # has no SEQUENCE after its version.
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


def test_WL_33_without_identity_x509_bundles_are_denied(stranger: Endpoint) -> None:
    assert stranger.status(wire.X509_BUNDLES) == PERMISSION_DENIED
