"""Verification of the agent's answers."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.cli.verify import (
    UntrustedAnswerError,
    parse_certificates,
    parse_jwt_bundles,
    parse_x509_bundles,
    verify_jwt,
    verify_update,
)
from agent.client.workload import ReceivedJwtSvid, X509Update
from agent.spiffe import keys
from agent.spiffe.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.spiffe.ids import TrustDomain
from tests.support.fetched import (
    CA,
    CA_KEY,
    DOMAIN,
    GOOD,
    ID,
    KEY,
    LEAF,
    NOW,
    OTHER_CA,
    UPDATE,
    der,
)

if TYPE_CHECKING:
    pass


def test_a_valid_update_is_returned() -> None:
    verified = verify_update(UPDATE, NOW)
    (svid,) = verified.svids
    assert (str(svid.spiffe_id), svid.hint, svid.chain) == (ID, "h", (LEAF,))
    assert svid.authorities == (CA, OTHER_CA)
    assert verified.federated == {TrustDomain("partner.example"): (OTHER_CA,)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spiffe_id": "spiffe://example.org/other"}, "for another SPIFFE ID"),
        ({"spiffe_id": "spiffe://other.org/me"}, "not of trust domain other.org"),
        ({"spiffe_id": "me"}, "does not begin with spiffe://"),
        ({"bundle_der": der(OTHER_CA)}, "no valid path"),
        ({"bundle_der": b""}, "contains no certificate"),
        ({"chain_der": b""}, "contains no certificate"),
        ({"chain_der": der(LEAF)[:-1]}, "no DER certificate"),
        ({"chain_der": der(LEAF) + b"0"}, "no DER certificate"),
        ({"chain_der": der(CA)}, "the leaf is a CA"),
        ({"key_der": keys.to_pkcs8_der(CA_KEY)}, "does not belong to its certificate"),
        ({"key_der": b"x"}, "private key is not PKCS#8"),
    ],
)
def test_an_invalid_svid_is_refused_with_the_reason(change: dict[str, bytes], reason: str) -> None:
    svid = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    with pytest.raises(UntrustedAnswerError, match=reason) as caught:
        verify_update(X509Update(svids=(GOOD, svid), federated_bundles={}), NOW)
    assert str(caught.value).startswith(f"the agent sent an X.509-SVID for {svid.spiffe_id!r}")


def test_an_expired_svid_is_refused() -> None:
    with pytest.raises(UntrustedAnswerError, match="no valid path"):
        verify_update(UPDATE, NOW + timedelta(hours=2))


def test_an_answer_without_svids_is_refused() -> None:
    with pytest.raises(UntrustedAnswerError, match="contains no SVID"):
        verify_update(X509Update(svids=(), federated_bundles={}), NOW)


def test_repr_does_not_show_the_key() -> None:
    assert "key_der" not in repr(GOOD)
    assert "key=" not in repr(verify_update(UPDATE, NOW).svids[0])


@pytest.mark.parametrize("name", ["Partner", "spiffe://partner.example/path", ""])
def test_a_bundle_with_an_invalid_trust_domain_is_refused(name: str) -> None:
    with pytest.raises(UntrustedAnswerError, match="bundle of"):
        parse_x509_bundles({name: der(CA)})
    with pytest.raises(UntrustedAnswerError, match="bundle of"):
        parse_jwt_bundles({name: b'{"keys": []}'})


def test_certificates_of_any_length_are_split() -> None:
    assert parse_certificates(der(CA, LEAF, OTHER_CA)) == (CA, LEAF, OTHER_CA)
    for junk in (b"0", b"0\x03abc", b"0\x80", b"0\x84\xff\xff\xff\xff", b"\x00" * 9):
        with pytest.raises(ValueError, match="no DER certificate"):
            parse_certificates(der(CA) + junk)


# --- JWT -----------------------------------------------------------------------------------------


def token(subject: str = ID, audience: tuple[str, ...] = ("a", "b")) -> str:
    claims = {"sub": subject, "aud": list(audience), "exp": NOW + timedelta(minutes=5)}
    assert isinstance(KEY, ec.EllipticCurvePrivateKey)
    return jwt.encode(claims, KEY, algorithm="ES256", headers={"kid": "k"})


BUNDLE = TrustBundle(
    trust_domain=DOMAIN,
    x509_authorities=(),
    jwt_authorities={"k": KEY.public_key()},
    sequence=0,
    refresh_hint=DEFAULT_REFRESH_HINT,
)
BUNDLES = parse_jwt_bundles({DOMAIN.id: BUNDLE.jwks()})


def test_a_token_valid_for_every_audience_is_returned() -> None:
    received = ReceivedJwtSvid(spiffe_id=ID, token=token(), hint="")
    valid = verify_jwt(received, ["a", "b"], BUNDLES, NOW)
    assert valid.expires_at == NOW + timedelta(minutes=5)
    assert received.token not in repr(received)


@pytest.mark.parametrize(
    ("sent", "audiences", "reason"),
    [
        (token(audience=("a",)), ["a", "b"], "for another audience"),
        (token(audience=("b",)), ["a", "b"], "for another audience"),
        (token("spiffe://example.org/other"), ["a"], "for another SPIFFE ID"),
        (token("spiffe://other.org/me"), ["a"], "no trust bundle for trust domain other.org"),
        (token()[:-8] + "AAAAAAAA", ["a"], "signature is not valid"),
    ],
)
def test_a_token_invalid_for_one_audience_is_refused(
    sent: str, audiences: list[str], reason: str
) -> None:
    received = ReceivedJwtSvid(spiffe_id=ID, token=sent, hint="")
    with pytest.raises(UntrustedAnswerError, match=reason) as caught:
        verify_jwt(received, audiences, BUNDLES, NOW)
    assert sent not in str(caught.value)
