from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from agent.spiffe import keys
from agent.spiffe.keys import KeyType
from tests.vectors.pki.forge import LEAF_KEY, rsa_key


def _pem(key: object, password: bytes | None = None) -> bytes:
    assert isinstance(
        key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    )
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@pytest.mark.parametrize(
    ("key_type", "curve"), [(KeyType.EC_P256, "secp256r1"), (KeyType.EC_P384, "secp384r1")]
)
def test_ec_keys_are_on_the_named_curve(key_type: KeyType, curve: str) -> None:
    key = keys.generate(key_type)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == curve


@pytest.mark.parametrize(("key_type", "bits"), [(KeyType.RSA_2048, 2048), (KeyType.RSA_4096, 4096)])
def test_rsa_keys_have_the_named_size(key_type: KeyType, bits: int) -> None:
    key = keys.generate(key_type)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == bits


def test_two_generated_keys_differ() -> None:
    first, second = keys.generate(KeyType.EC_P256), keys.generate(KeyType.EC_P256)
    assert first.public_key() != second.public_key()


def test_pem_is_pkcs8_and_reads_back() -> None:
    pem = keys.to_pem(LEAF_KEY)
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert keys.load_pem(pem).public_key() == LEAF_KEY.public_key()


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "damaged"),
        (b"not a key", "damaged"),
        (_pem(LEAF_KEY)[:80], "damaged"),
        (_pem(LEAF_KEY, password=b"secret"), "encrypted"),
        (_pem(ed25519.Ed25519PrivateKey.generate()), "neither EC nor RSA"),
        (_pem(ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
        (_pem(rsa_key(1024)), "1024 bits"),
    ],
)
def test_pem_that_is_no_acceptable_private_key_is_refused(pem: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        keys.load_pem(pem)


def test_a_public_key_in_pem_is_not_a_private_key() -> None:
    pem = LEAF_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(ValueError, match="not a private key"):
        keys.load_pem(pem)


def test_an_error_does_not_quote_the_key() -> None:
    body = "MHcCAQEEIThisIsNotToBeSeen"
    with pytest.raises(ValueError, match="damaged") as caught:
        keys.load_pem(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n".encode())
    assert body not in str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("key", "algorithms", "hash_name"),
    [
        (ec.generate_private_key(ec.SECP256R1()), ("ES256",), "sha256"),
        (ec.generate_private_key(ec.SECP384R1()), ("ES384",), "sha384"),
        (ec.generate_private_key(ec.SECP521R1()), ("ES512",), "sha512"),
        (rsa_key(2048), ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "sha256"),
    ],
)
def test_the_key_determines_its_algorithms(
    key: keys.PrivateKey, algorithms: tuple[str, ...], hash_name: str
) -> None:
    public = keys.check_public(key.public_key())
    assert keys.jws_algorithms(public) == algorithms
    assert keys.signature_hash(public).name == hash_name


def test_a_jwt_svid_may_have_nine_algorithms() -> None:
    assert sorted(keys.JWS_ALGORITHMS) == sorted(
        ["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    )


def test_der_reads_back_and_pem_is_refused_as_der() -> None:
    assert keys.load_der(keys.to_pkcs8_der(LEAF_KEY)).public_key() == LEAF_KEY.public_key()
    with pytest.raises(ValueError, match="not a private key in DER"):
        keys.load_der(keys.to_pem(LEAF_KEY))
