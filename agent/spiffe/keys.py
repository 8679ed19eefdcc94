"""The kinds of keys that vouchd generates and accepts, and their signature algorithms.

A key that this module returns is EC on P-256, P-384 or P-521, or RSA of at least 2048 bits: strong
enough for every use in the standards. `agent.authority.keystore` stores keys.
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

# RFC 7518 section 3.3, and the minimum of every TLS stack in use.
MIN_RSA_BITS = 2048

# RFC 7518 section 3.4: one hash for each curve. X.509 signatures here use the same pairs.
_EC_ALGORITHMS: dict[str, tuple[str, SignatureHash]] = {
    ec.SECP256R1.name: ("ES256", hashes.SHA256()),
    ec.SECP384R1.name: ("ES384", hashes.SHA384()),
    ec.SECP521R1.name: ("ES512", hashes.SHA512()),
}
# The first one signs: every JWT library supports it.
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

JWS_ALGORITHMS = (*(name for name, _ in _EC_ALGORITHMS.values()), *_RSA_ALGORITHMS)
"""The nine values of `alg` of a JWT-SVID (JWT-SVID section 2.1)."""


class KeyType(StrEnum):
    """The key types that an operator can choose, as the configuration spells them."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_4096 = "rsa-4096"


def generate(key_type: KeyType) -> PrivateKey:
    """Generate a key. RSA takes up to seconds: never on an event loop."""
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
    """The key as unencrypted PKCS#8 in DER, the form of the Workload API."""
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
        ValueError: the data is no such key, or `check_public` refuses it. The message quotes none
            of the data.
    """
    return _load(serialization.load_pem_private_key, data, "PEM")


def load_der(data: bytes) -> PrivateKey:
    """Read an unencrypted private key in DER, as `to_pkcs8_der` returns it.

    Raises:
        ValueError: see `load_pem`.
    """
    return _load(serialization.load_der_private_key, data, "DER")


def _load(
    parse: Callable[[bytes, bytes | None], PrivateKeyTypes], data: bytes, form: str
) -> PrivateKey:
    # The library's messages are dropped: they speak of ASN.1 and may quote the input.
    try:
        key = parse(data, None)
    except TypeError:
        raise ValueError("the private key is encrypted; give an unencrypted one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"the data is not a private key in {form}, or it is damaged") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("the private key is neither EC nor RSA")  # noqa: TRY004 - data, not a type
    check_public(key.public_key())
    return key


def check_public(key: object) -> PublicKey:
    """Return the key if vouchd accepts it.

    Raises:
        ValueError: the key is neither EC on P-256, P-384 or P-521 nor RSA of at least 2048 bits.
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
    """The values of `alg` that fit the key; the first one signs."""
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA_ALGORITHMS
    return (_EC_ALGORITHMS[key.curve.name][0],)


def signature_hash(key: PublicKey) -> SignatureHash:
    """The hash of this key's signatures in certificates."""
    if isinstance(key, rsa.RSAPublicKey):
        return hashes.SHA256()
    return _EC_ALGORITHMS[key.curve.name][1]
