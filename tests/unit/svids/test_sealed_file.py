"""The file format of the SVID cache: valid SVIDs read back unchanged, others are refused."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.authority.x509_issuer import X509Issuer, create_x509_authority
from agent.authority.x509_template import X509SvidRequest
from agent.entries.identity import Identity
from agent.spiffe import keys
from agent.spiffe.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids.sealed_file import HEADER_BYTES, VERSION, Sealer, StoredSvid, Unsealed, unseal
from agent.svids.x509_svid import X509Svid
from tests.support.fakes import START, identity

TD = TrustDomain("example.org")
SECRET = b"s" * 32
HOUR = dt.timedelta(hours=1)
RENEW_AT = START + dt.timedelta(minutes=31, microseconds=123_457)
CA_KEY = keys.generate(KeyType.EC_P256)
CA = create_x509_authority(TD, CA_KEY, now=START, ttl=24 * HOUR)
ISSUER = X509Issuer(CA, CA_KEY, TD)


def bundle_of(*authorities: x509.Certificate) -> TrustBundle:
    return TrustBundle(
        trust_domain=TD,
        x509_authorities=authorities,
        jwt_authorities={},
        sequence=1,
        refresh_hint=DEFAULT_REFRESH_HINT,
    )


BUNDLE = bundle_of(CA)


def mint(of: Identity, ttl: dt.timedelta = HOUR) -> X509Svid:
    key = keys.generate(KeyType.EC_P256)
    request = X509SvidRequest(spiffe_id=of.spiffe_id, public_key=key.public_key(), ttl=ttl)
    certificate = ISSUER.issue(ISSUER.prepare(request, START))
    return X509Svid.of(of, certificate, key, RENEW_AT)


A, B = identity("a", hint="internal"), identity("b")
SVID_A, SVID_B = mint(A), mint(B)
STORED_A, STORED_B = StoredSvid.of(A, SVID_A), StoredSvid.of(B, SVID_B)


def file(*svids: StoredSvid, secret: bytes = SECRET, domain: TrustDomain = TD) -> bytes:
    sealer = Sealer(secret, domain)
    return sealer.header + b"".join(map(sealer.record, svids))


def test_stored_svids_read_back_bit_for_bit() -> None:
    unsealed = unseal(file(STORED_A, STORED_B), SECRET, TD)
    assert unsealed == Unsealed(svids=(STORED_A, STORED_B))
    assert unsealed.svids[0].restore(A, BUNDLE, START) == SVID_A


def test_the_file_shows_nothing_of_an_svid_without_the_secret() -> None:
    data = file(STORED_A)
    for part in (SVID_A.key_der[-40:], SVID_A.chain_der[40:80], b"example.org", b"internal"):
        assert part not in data


def test_two_files_with_the_same_svid_differ_in_salt_and_record() -> None:
    one, other = file(STORED_A), file(STORED_A)
    assert one[: len(VERSION)] == other[: len(VERSION)]
    assert one[len(VERSION) : HEADER_BYTES] != other[len(VERSION) : HEADER_BYTES]
    assert one[HEADER_BYTES + 4 :] != other[HEADER_BYTES + 4 :]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "it is empty, damaged, or of another version"),
        (b"vouchd svids 0\n" + bytes(200), "it is empty, damaged, or of another version"),
        (bytes(4096), "it is empty, damaged, or of another version"),
        (VERSION, ""),
        (file(STORED_A, secret=b"t" * 32), "its key or trust domain is another, or it is damaged"),
        (
            file(STORED_A, domain=TrustDomain("other.org")),
            "its key or trust domain is another, or it is damaged",
        ),
        (file() + bytes(500), "it is cut off in the middle"),
        (file() + b"\xff" * 500, "it is cut off in the middle"),
    ],
)
def test_a_foreign_or_damaged_file_has_a_fault_and_no_svids(data: bytes, fault: str) -> None:
    assert unseal(data, SECRET, TD) == Unsealed(fault=fault)


def test_a_file_cut_off_anywhere_gives_its_whole_records() -> None:
    whole = file(STORED_A, STORED_B)
    first = len(whole) - len(Sealer(SECRET, TD).record(STORED_B))
    for length in range(HEADER_BYTES + 1, len(whole)):
        unsealed = unseal(whole[:length], SECRET, TD)
        assert unsealed.svids == ((STORED_A,) if length >= first else ())
        assert unsealed.fault == ("" if length == first else "it is cut off in the middle")


def test_a_changed_byte_anywhere_is_detected() -> None:
    whole = file(STORED_A)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        assert unseal(bytes(changed), SECRET, TD).fault, position
        assert not unseal(bytes(changed), SECRET, TD).svids


def test_a_damaged_record_costs_the_records_behind_it() -> None:
    changed = bytearray(file(STORED_A, STORED_B))
    changed[-1] ^= 1
    assert unseal(bytes(changed), SECRET, TD) == Unsealed(svids=(STORED_A,), fault="it is damaged")


def test_a_record_of_another_file_is_not_accepted() -> None:
    moved = file(STORED_A) + file(STORED_B)[HEADER_BYTES:]
    assert unseal(moved, SECRET, TD) == Unsealed(svids=(STORED_A,), fault="it is damaged")


@pytest.mark.parametrize("plain", [b"", b"x" * 41, b"x" * 32 + b"\x7f" + b"\xff" * 9])
def test_a_record_with_an_invalid_content_has_a_fault(plain: bytes) -> None:
    salt = bytes(32)
    derivation = HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=VERSION)
    sealed = AESGCM(derivation.derive(SECRET)).encrypt(bytes(12), plain, VERSION + b"example.org")
    data = VERSION + salt + (len(sealed) + 12).to_bytes(4, "big") + bytes(12) + sealed
    unsealed = unseal(data, SECRET, TD)
    assert unsealed.fault
    assert not unsealed.svids


@pytest.mark.parametrize(
    "changes",
    [
        {"hint": "x"},
        {"dns_names": ("x",)},
        {"x509_svid_ttl": HOUR},
        {"jwt_svid_ttl": HOUR},
        {"federates_with": (TrustDomain("x"),)},
        {"expires_at": START + HOUR},
        {"holder": "x"},
        {"entry_id": "x"},
        {"spiffe_id": B.spiffe_id},
    ],
)
def test_an_identity_with_one_other_field_does_not_get_the_svid(changes: dict[str, Any]) -> None:
    """Each field counts, so that a change of an entry takes effect at once."""
    with pytest.raises(ValueError, match="belongs to another identity"):
        STORED_A.restore(replace(A, **changes), BUNDLE, START)


OTHER_KEY = keys.generate(KeyType.EC_P256)
OTHER_CA = create_x509_authority(TD, OTHER_KEY, now=START, ttl=24 * HOUR)


@pytest.mark.parametrize(
    ("stored", "bundle", "after", "reason"),
    [
        (STORED_A, bundle_of(OTHER_CA), 0 * HOUR, "no valid path"),
        (STORED_A, BUNDLE, HOUR + dt.timedelta(seconds=1), "no valid path"),
        (STORED_A, BUNDLE, -HOUR, "no valid path"),
        (replace(STORED_A, chain_der=SVID_B.chain_der), BUNDLE, 0 * HOUR, "another identity"),
        (replace(STORED_A, key_der=SVID_B.key_der), BUNDLE, 0 * HOUR, "is not its certificate"),
        (replace(STORED_A, key_der=b"k"), BUNDLE, 0 * HOUR, "not a private key in DER"),
        (replace(STORED_A, chain_der=b"c"), BUNDLE, 0 * HOUR, "parsing"),
    ],
)
def test_an_svid_that_does_not_verify_is_refused(
    stored: StoredSvid, bundle: TrustBundle, after: dt.timedelta, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        stored.restore(A, bundle, START + after)
    assert SVID_A.key_der.hex() not in str(caught.value)
