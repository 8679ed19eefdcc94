"""Strict parsers for certificates, keys, tokens and key sets; a malformed one fails the test."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import jwt
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from .pb import workload_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

# RFC 5280 section 4.1: a certificate is a SEQUENCE.
_SEQUENCE = 0x30
JWS_ALGORITHMS = {f"{family}{bits}" for family in ("RS", "ES", "PS") for bits in (256, 384, 512)}
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)


def hints_of(svids: Any) -> list[str]:
    """Return the hints that are not empty."""
    return [svid.hint for svid in svids if svid.hint]


def certificates(der: bytes) -> list[x509.Certificate]:
    """Parse concatenated DER certificates, to the last byte."""
    found = []
    while der:
        assert der[0] == _SEQUENCE, "the bytes are not DER"
        length = _der_length(der)
        assert length <= len(der), "the last certificate is cut off"
        found.append(x509.load_der_x509_certificate(der[:length]))
        der = der[length:]
    return found


def _der_length(der: bytes) -> int:
    """Return the length of the first element with its head (X.690 section 8.1.3)."""
    first = der[1]
    if first < 0x80:  # the short form
        return 2 + first
    octets = first & 0x7F
    return 2 + octets + int.from_bytes(der[2 : 2 + octets])


@dataclass(frozen=True, slots=True)
class X509Svid:
    """One X509-SVID of a response."""

    message: pb.X509SVID

    @property
    def leaf(self) -> x509.Certificate:
        """Return the workload's certificate."""
        return certificates(self.message.x509_svid)[0]

    @property
    def authorities(self) -> list[x509.Certificate]:
        """Return the CA certificates of the SVID's trust domain."""
        return certificates(self.message.bundle)

    @property
    def trust_domain(self) -> str:
        """Return the name of the SVID's trust domain."""
        return trust_domain(self.message.spiffe_id)

    def verify(self) -> None:
        """Verify that a path leads from the leaf to an authority.

        Raises:
            VerificationError: there is none.
        """
        leaf, *intermediates = certificates(self.message.x509_svid)
        policy = PolicyBuilder().store(Store(self.authorities))
        policy.build_client_verifier().verify(leaf, intermediates)


def trust_domain(spiffe_id: str) -> str:
    """Return the name of the trust domain in a SPIFFE ID."""
    return spiffe_id.split("/")[2]


def extension(
    certificate: x509.Certificate, kind: type[ExtensionT]
) -> x509.Extension[ExtensionT] | None:
    """Return an extension of a certificate, or None."""
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def uris(certificate: x509.Certificate) -> list[str]:
    """Return all URI names of a certificate."""
    san = extension(certificate, x509.SubjectAlternativeName)
    return san.value.get_values_for_type(x509.UniformResourceIdentifier) if san else []


def usages(certificate: x509.Certificate) -> set[str]:
    """Return the names of the bits that a certificate's key usage sets."""
    usage = extension(certificate, x509.KeyUsage)
    assert usage is not None, "there is no key usage extension"
    return {name for name in _USAGES if getattr(usage.value, name)}


def is_ca(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate's basic constraints say CA."""
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints is not None, "there is no basic constraints extension"
    return constraints.value.ca


@dataclass(frozen=True, slots=True)
class Token:
    """A token in compact serialization. Only `verify` checks its signature."""

    text: str

    @property
    def parts(self) -> list[str]:
        """Return the parts between the dots."""
        return self.text.split(".")

    @property
    def header(self) -> dict[str, Any]:
        """Return the JOSE header."""
        return _json_object(self.parts[0])

    @property
    def claims(self) -> dict[str, Any]:
        """Return the claims."""
        return _json_object(self.parts[1])

    @property
    def audience(self) -> list[str]:
        """Return the audience as a list; the claim may be one text (RFC 7519 section 4.1.3)."""
        value = self.claims["aud"]
        return [value] if isinstance(value, str) else value

    def verify(self, keys: Mapping[str, Any]) -> None:
        """Verify signature and expiry with the key of a JWK Set that `kid` names."""
        header = self.header
        (jwk,) = [key for key in keys["keys"] if key["kid"] == header["kid"]]
        key = jwt.PyJWK(jwk, algorithm=header["alg"])
        options: Any = {"require": ["exp"], "verify_aud": False}
        jwt.decode(self.text, key, algorithms=[header["alg"]], options=options)

    def altered(
        self, header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None
    ) -> str:
        """Return the token with other members and the old signature."""
        return ".".join(
            [
                encode(self.header | header) if header else self.parts[0],
                encode(self.claims | claims) if claims else self.parts[1],
                self.parts[2],
            ]
        )


def encode(members: Mapping[str, Any]) -> str:
    """Encode a JSON object as a part of a token."""
    return base64url(json.dumps(members).encode())


def base64url(data: bytes) -> str:
    """Encode without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def json_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object."""
    value = json.loads(text)
    assert isinstance(value, dict), "the text is not a JSON object"
    return value


def _json_object(part: str) -> dict[str, Any]:
    return json_object(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
