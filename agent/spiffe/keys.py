"""The kinds of keys vouchd makes and accepts, and what each may sign.

A key that leaves this module is strong enough for every use the standards have for it: an EC key on
a NIST curve that JWS names, or RSA of at least 2048 bits. Keys on disk are not the business here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, assert_never

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
SignatureHash: TypeAlias = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

# RFC 7518 section 3.3, and what every TLS stack in use asks for.
MIN_RSA_BITS = 2048

# RFC 7518 section 3.4 ties each curve to one hash; X.509 signatures here use the same pairs.
_EC_ALGORITHMS: dict[str, tuple[str, SignatureHash]] = {
    ec.SECP256R1.name: ("ES256", hashes.SHA256()),
    ec.SECP384R1.name: ("ES384", hashes.SHA384()),
    ec.SECP521R1.name: ("ES512", hashes.SHA512()),
}
# The first one is what we sign with: it is the one that every JWT library has.
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

JWS_ALGORITHMS = (*(name for name, _ in _EC_ALGORITHMS.values()), *_RSA_ALGORITHMS)
"""The nine values of `alg` that a JWT-SVID may have (JWT-SVID section 2.1)."""


class KeyType(StrEnum):
    """The keys an operator may choose, as they are spelt in the configuration."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_4096 = "rsa-4096"


def generate(key_type: KeyType) -> PrivateKey:
    """Make a new key; RSA takes up to seconds, so not on an event loop."""
    match key_type:
        case KeyType.EC_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.EC_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.RSA_2048:
            return rsa.generate_private_key(65537, 2048)
        case KeyType.RSA_4096:
            return rsa.generate_private_key(65537, 4096)
        case _:
            assert_never(key_type)


def to_pkcs8_der(key: PrivateKey) -> bytes:
    """The key as unencrypted PKCS#8, the only form that all Workload API clients read (IC-03)."""
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def to_pem(key: PrivateKey) -> bytes:
    """The key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_pem(data: bytes) -> PrivateKey:
    """Read an unencrypted private key in PEM.

    Raises:
        ValueError: it is something else, or a key that `check_public` refuses. The message holds
            nothing of the data.
    """
    return _load(serialization.load_pem_private_key, data, "PEM")


def load_der(data: bytes) -> PrivateKey:
    """Read what `to_pkcs8_der` wrote.

    Raises:
        ValueError: see `load_pem`.
    """
    return _load(serialization.load_der_private_key, data, "DER")


def _load(
    parse: Callable[[bytes, bytes | None], PrivateKeyTypes], data: bytes, form: str
) -> PrivateKey:
    # The library's own messages are not passed on: they are about ASN.1 and may quote the input.
    try:
        key = parse(data, None)
    except TypeError:
        raise ValueError("the private key is encrypted, and no password can be given") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"this is not a private key in {form}, or it is damaged") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("the private key is neither EC nor RSA")  # noqa: TRY004 - data, not a type
    check_public(key.public_key())
    return key


def check_public(key: object) -> PublicKey:
    """Return the key if vouchd accepts it.

    Raises:
        ValueError: it is neither EC on P-256, P-384 or P-521 nor RSA of at least 2048 bits.
    """
    match key:
        case ec.EllipticCurvePublicKey():
            if key.curve.name not in _EC_ALGORITHMS:
                raise ValueError(f"the EC key is on {key.curve.name}, not P-256, P-384 or P-521")
            return key
        case rsa.RSAPublicKey():
            if key.key_size < MIN_RSA_BITS:
                raise ValueError(f"the RSA key has {key.key_size} bits, fewer than {MIN_RSA_BITS}")
            return key
        case _:
            raise ValueError("the public key is neither EC nor RSA")


def jws_algorithms(key: PublicKey) -> tuple[str, ...]:
    """The values of `alg` that fit the key; the first is the one to sign with."""
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA_ALGORITHMS
    return (_EC_ALGORITHMS[key.curve.name][0],)


def signature_hash(key: PublicKey) -> SignatureHash:
    """The hash for signatures of this key in certificates."""
    if isinstance(key, rsa.RSAPublicKey):
        return hashes.SHA256()
    return _EC_ALGORITHMS[key.curve.name][1]
