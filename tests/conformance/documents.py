"""What came over the wire, taken apart: certificates, keys, tokens, key sets.

Nothing here is lenient, and nothing is of the agent: a document that cannot be read fails the test.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import jwt
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from agent.pb import workloadapi_pb2 as pb

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
    """The hints of those that have one."""
    return [svid.hint for svid in svids if svid.hint]


def certificates(der: bytes) -> list[x509.Certificate]:
    """Concatenated DER certificates, to the last byte."""
    found = []
    while der:
        assert der[0] == _SEQUENCE, "this is not DER"
        length = _der_length(der)
        assert length <= len(der), "the last certificate is cut off"
        found.append(x509.load_der_x509_certificate(der[:length]))
        der = der[length:]
    return found


def _der_length(der: bytes) -> int:
    """The length of the first element with its head (X.690 section 8.1.3)."""
    first = der[1]
    if first < 0x80:  # the short form
        return 2 + first
    octets = first & 0x7F
    return 2 + octets + int.from_bytes(der[2 : 2 + octets])


@dataclass(frozen=True, slots=True)
class X509Svid:
    """An X509-SVID of a response."""

    message: pb.X509SVID

    @property
    def leaf(self) -> x509.Certificate:
        """The workload's certificate."""
        return certificates(self.message.x509_svid)[0]

    @property
    def authorities(self) -> list[x509.Certificate]:
        """The CA certificates of its trust domain."""
        return certificates(self.message.bundle)

    @property
    def trust_domain(self) -> str:
        """The name of its trust domain."""
        return trust_domain(self.message.spiffe_id)

    def verify(self) -> None:
        """Find a path from the leaf to an authority."""
        leaf, *intermediates = certificates(self.message.x509_svid)
        policy = PolicyBuilder().store(Store(self.authorities))
        policy.build_client_verifier().verify(leaf, intermediates)


def trust_domain(spiffe_id: str) -> str:
    """The name of the trust domain in a SPIFFE ID."""
    return spiffe_id.split("/")[2]


def extension(
    certificate: x509.Certificate, kind: type[ExtensionT]
) -> x509.Extension[ExtensionT] | None:
    """An extension, if the certificate has it."""
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def uris(certificate: x509.Certificate) -> list[str]:
    """All URI names of a certificate."""
    san = extension(certificate, x509.SubjectAlternativeName)
    return san.value.get_values_for_type(x509.UniformResourceIdentifier) if san else []


def usages(certificate: x509.Certificate) -> set[str]:
    """What the key of a certificate may be used for, by its own word."""
    usage = extension(certificate, x509.KeyUsage)
    assert usage is not None, "there is no key usage extension"
    return {name for name in _USAGES if getattr(usage.value, name)}


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that it is one of a CA."""
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints is not None, "there is no basic constraints extension"
    return constraints.value.ca


@dataclass(frozen=True, slots=True)
class Token:
    """A signed token in compact serialization; only `verify` says something about its signature."""

    text: str

    @property
    def parts(self) -> list[str]:
        """The parts between the dots."""
        return self.text.split(".")

    @property
    def header(self) -> dict[str, Any]:
        """The JOSE header."""
        return _json_object(self.parts[0])

    @property
    def claims(self) -> dict[str, Any]:
        """The claims."""
        return _json_object(self.parts[1])

    @property
    def audience(self) -> list[str]:
        """The audience, which may be a text or a list."""
        value = self.claims["aud"]
        return [value] if isinstance(value, str) else value

    def verify(self, keys: Mapping[str, Any]) -> None:
        """Check the signature and the expiry with the key of a JWK Set that it names."""
        header = self.header
        (jwk,) = [key for key in keys["keys"] if key["kid"] == header["kid"]]
        key = jwt.PyJWK(jwk, algorithm=header["alg"])
        options: Any = {"require": ["exp"], "verify_aud": False}
        jwt.decode(self.text, key, algorithms=[header["alg"]], options=options)

    def altered(
        self, header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None
    ) -> str:
        """The token with members exchanged, under the signature it had."""
        return ".".join(
            [
                encode(self.header | header) if header else self.parts[0],
                encode(self.claims | claims) if claims else self.parts[1],
                self.parts[2],
            ]
        )


def encode(members: Mapping[str, Any]) -> str:
    """A JSON object as part of a token."""
    return base64url(json.dumps(members).encode())


def base64url(data: bytes) -> str:
    """RFC 7515 section 2: without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object."""
    value = json.loads(text)
    assert isinstance(value, dict), "this is not a JSON object"
    return value


def _json_object(part: str) -> dict[str, Any]:
    return json_object(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
