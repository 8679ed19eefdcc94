"""Verification of the agent's answers, and the files that --write makes."""

from __future__ import annotations

import dataclasses
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.cli.store import StoreError, write_update
from agent.cli.verify import (
    UntrustedAnswerError,
    parse_certificates,
    parse_jwt_bundles,
    parse_x509_bundles,
    verify_jwt,
    verify_update,
)
from agent.client.workload import ReceivedJwtSvid, ReceivedX509Svid, X509Update
from agent.spiffe import keys
from agent.spiffe.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.spiffe.ids import TrustDomain

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "spiffe://example.org/me"
DOMAIN = TrustDomain("example.org")


def certificate(
    uri: str, key: keys.PrivateKey, issuer: x509.Certificate | None, issuer_key: keys.PrivateKey
) -> x509.Certificate:
    ca = issuer is None
    name = x509.Name.from_rfc4514_string("O=test")
    usages = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(**usages, digital_signature=not ca, key_cert_sign=ca, crl_sign=ca),
            critical=True,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not ca:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def der(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.DER) for each in certificates)


CA_KEY = keys.generate(keys.KeyType.EC_P256)
CA = certificate("spiffe://example.org", CA_KEY, None, CA_KEY)
OTHER_CA_KEY = keys.generate(keys.KeyType.EC_P256)
OTHER_CA = certificate("spiffe://example.org", OTHER_CA_KEY, None, OTHER_CA_KEY)
KEY = keys.generate(keys.KeyType.EC_P256)
LEAF = certificate(ID, KEY, CA, CA_KEY)

GOOD = ReceivedX509Svid(
    spiffe_id=ID,
    chain_der=der(LEAF),
    key_der=keys.to_pkcs8_der(KEY),
    bundle_der=der(CA, OTHER_CA),
    hint="h",
)
UPDATE = X509Update(svids=(GOOD,), federated_bundles={"spiffe://partner.example": der(OTHER_CA)})


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


# --- files ---------------------------------------------------------------------------------------


def test_files_have_their_modes_and_no_temporary_file_remains(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "down"
    written = write_update(verify_update(UPDATE, NOW), directory)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {
        "svid.0.key": 0o600,
        "svid.0.pem": 0o644,
        "bundle.0.pem": 0o644,
        "federated_bundle.0.0.pem": 0o644,
    }
    assert {path.name for path in written} == set(modes)
    assert (directory / "svid.0.key").read_bytes() == keys.to_pem(KEY)
    bundle = x509.load_pem_x509_certificates((directory / "bundle.0.pem").read_bytes())
    assert bundle == [CA, OTHER_CA]


def test_a_link_in_the_place_of_the_key_is_replaced(
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (tmp_path / "svid.0.key").symlink_to(elsewhere)
    write_update(verify_update(UPDATE, NOW), tmp_path)
    assert elsewhere.read_text() == "untouched"
    assert not (tmp_path / "svid.0.key").is_symlink()


def test_the_key_has_mode_0600_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def watching_fsync(_descriptor: int) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(".svid.0.key*"))

    monkeypatch.setattr("os.fsync", watching_fsync)
    write_update(verify_update(UPDATE, NOW), tmp_path)
    assert set(modes) == {0o600}


def test_the_error_about_an_unusable_directory_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*/file/x: Not a directory; choose"):
        write_update(verify_update(UPDATE, NOW), tmp_path / "file" / "x")


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_update(verify_update(UPDATE, NOW), tmp_path)
    assert list(tmp_path.iterdir()) == []
