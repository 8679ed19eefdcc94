"""The file format of the SVID cache: encrypted X.509-SVIDs, verified again when they are read.

A file begins with its version and a salt. One record for each SVID follows. A later record replaces
an earlier one of the same identity, so that a new SVID is appended:

    4 bytes: length of the rest | 12 bytes: nonce | AES-256-GCM (SP 800-38D) of the SVID

The key is derived from a secret and the salt by HKDF (RFC 5869). Each file has its own key, so that
random nonces suffice for its records. Version and trust domain are authenticated with each record.

A file may be damaged, cut off, old, or written by another agent: a record in doubt is left out, and
the reason is returned. Before an SVID is handed out, it is verified like a peer's. That takes a
third of a millisecond, so that each SVID is verified when it is needed and not all at once.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.spiffe import keys
from agent.spiffe.x509_rules import ValidationError, validate_x509_svid
from agent.svids.x509_svid import X509Svid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.entries.identity import Identity
    from agent.spiffe.bundle import TrustBundle
    from agent.spiffe.ids import TrustDomain

VERSION = b"vouchd svids 1\n"
SALT_BYTES = 32
HEADER_BYTES = len(VERSION) + SALT_BYTES
MIN_SECRET_BYTES = 32

_NONCE_BYTES = 12
_LENGTH = struct.Struct(">I")
# Fingerprint, `renew_at` in microseconds since 1970, length of the key. Key and certificate follow.
_RECORD = struct.Struct(">32sqH")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSvid:
    """An X.509-SVID with the fingerprint of its identity."""

    fingerprint: bytes
    renew_at: datetime
    key_der: bytes
    chain_der: bytes

    @classmethod
    def of(cls, identity: Identity, svid: X509Svid) -> Self:
        """The parts of an SVID that are stored; the certificate holds the rest."""
        return cls(
            fingerprint=fingerprint(identity),
            renew_at=svid.renew_at,
            key_der=svid.key_der,
            chain_der=svid.chain_der,
        )

    def restore(self, identity: Identity, bundle: TrustBundle, now: datetime) -> X509Svid:
        """Verify the SVID and return it.

        Raises:
            ValueError: the key is not the certificate's, the SVID belongs to another identity, or
                it does not verify with this bundle now.
        """
        certificate = x509.load_der_x509_certificate(self.chain_der)
        key = keys.load_der(self.key_der)
        try:
            spiffe_id = validate_x509_svid([certificate], bundle, now)
        except ValidationError as error:
            raise ValueError(str(error)) from None
        if self.fingerprint != fingerprint(identity) or spiffe_id != identity.spiffe_id:
            raise ValueError("it belongs to another identity")
        if certificate.public_key() != key.public_key():
            raise ValueError("its key is not its certificate's")
        return X509Svid.of(identity, certificate, key, self.renew_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """The SVIDs of a file in its order, and the fault that ended reading, if any."""

    svids: tuple[StoredSvid, ...] = ()
    fault: str = ""


class Sealer:
    """Encodes one new file: `header` comes first, then any number of records.

    Args:
        secret: at least MIN_SECRET_BYTES.
        trust_domain: of the SVIDs.
    """

    def __init__(self, secret: bytes, trust_domain: TrustDomain) -> None:
        salt = secrets.token_bytes(SALT_BYTES)
        self.header = VERSION + salt
        self._cipher = _cipher(secret, salt)
        self._context = _context(trust_domain)

    def record(self, svid: StoredSvid) -> bytes:
        """Encrypt one SVID."""
        renew_at = (svid.renew_at - _EPOCH) // _MICROSECOND
        head = _RECORD.pack(svid.fingerprint, renew_at, len(svid.key_der))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        plain = head + svid.key_der + svid.chain_der
        sealed = nonce + self._cipher.encrypt(nonce, plain, self._context)
        return _LENGTH.pack(len(sealed)) + sealed


def unseal(data: bytes, secret: bytes, trust_domain: TrustDomain) -> Unsealed:
    """Decrypt the records of a file up to the first fault."""
    if not data.startswith(VERSION):
        return Unsealed(fault="it is empty, damaged, or of another version")
    cipher = _cipher(secret, data[len(VERSION) : HEADER_BYTES])
    context = _context(trust_domain)
    found: list[StoredSvid] = []
    try:
        for sealed in _records(data):
            nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            found.append(_parse(cipher.decrypt(nonce, text, context)))
    except InvalidTag:
        fault = "it is damaged" if found else "its key or trust domain is another, or it is damaged"
    except (ValueError, OverflowError) as error:
        fault = str(error)
    else:
        fault = ""
    return Unsealed(svids=tuple(found), fault=fault)


def fingerprint(identity: Identity) -> bytes:
    """A digest of all fields of an identity.

    `repr` names every field, also one that is added later. A new field, or a new name of a class,
    changes all fingerprints: each stored SVID is then issued anew, once.
    """
    return sha256(repr(identity).encode()).digest()


def _records(data: bytes) -> Iterator[bytes]:
    view, position = memoryview(data), HEADER_BYTES
    while position < len(data):
        start = position + _LENGTH.size
        length = int.from_bytes(view[position:start], "big")
        position = start + length
        if position > len(data) or length < _NONCE_BYTES:
            raise ValueError("it is cut off in the middle")
        yield bytes(view[start:position])


def _parse(plain: bytes) -> StoredSvid:
    if len(plain) < _RECORD.size:
        raise ValueError("it is damaged")
    mark, renew_at, key_length = _RECORD.unpack_from(plain)
    key_end = _RECORD.size + key_length
    return StoredSvid(
        fingerprint=mark,
        renew_at=_EPOCH + renew_at * _MICROSECOND,
        key_der=plain[_RECORD.size : key_end],
        chain_der=plain[key_end:],
    )


def _cipher(secret: bytes, salt: bytes) -> AESGCM:
    derivation = HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=VERSION)
    return AESGCM(derivation.derive(secret))


def _context(trust_domain: TrustDomain) -> bytes:
    return VERSION + trust_domain.name.encode()
