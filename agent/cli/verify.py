"""Verify the agent's answers before they are shown or written.

A peer would refuse an SVID that fails here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from agent.errors import VouchdError
from agent.spiffe import keys
from agent.spiffe.bundle import DEFAULT_REFRESH_HINT, TrustBundle, parse_jwks
from agent.spiffe.ids import SCHEME, SpiffeId, TrustDomain
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.spiffe.x509_rules import validate_x509_svid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from agent.client.workload import ReceivedJwtSvid, ReceivedX509Svid, X509Update
    from agent.spiffe.jwt_rules import ValidatedJwtSvid
    from agent.spiffe.keys import PrivateKey


class UntrustedAnswerError(VouchdError):
    """An answer of the agent fails verification."""

    def __init__(self, what: str, reason: object) -> None:
        super().__init__(
            f"the agent sent {what} that fails verification: {reason}; nothing was written or"
            " shown: check the host's clock, and that --socket names the right agent"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedX509Svid:
    """A verified X.509-SVID: chain, key, SPIFFE ID and bundle are consistent."""

    spiffe_id: SpiffeId
    hint: str
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    authorities: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedUpdate:
    """A verified message of FetchX509SVID; `federated` has authorities by trust domain."""

    svids: tuple[VerifiedX509Svid, ...]
    federated: Mapping[TrustDomain, tuple[x509.Certificate, ...]]


def verify_update(update: X509Update, now: datetime) -> VerifiedUpdate:
    """Verify a message of FetchX509SVID.

    Raises:
        UntrustedAnswerError: an SVID or a bundle in it fails verification.
    """
    if not update.svids:
        raise UntrustedAnswerError("an answer", "it contains no SVID")
    return VerifiedUpdate(
        svids=tuple(_verify_x509(svid, now) for svid in update.svids),
        federated=parse_x509_bundles(update.federated_bundles),
    )


def _verify_x509(received: ReceivedX509Svid, now: datetime) -> VerifiedX509Svid:
    try:
        claimed = SpiffeId.parse(received.spiffe_id)
        chain = parse_certificates(received.chain_der)
        authorities = parse_certificates(received.bundle_der)
        key = _parse_key(received.key_der)
        bundle = _bundle(claimed.trust_domain, x509_authorities=authorities)
        if validate_x509_svid(chain, bundle, now) != claimed:
            raise ValueError("its certificate is for another SPIFFE ID")  # noqa: TRY301
        if chain[0].public_key() != key.public_key():
            raise ValueError("its private key does not belong to its certificate")  # noqa: TRY301
    except (ValueError, VouchdError) as error:
        raise UntrustedAnswerError(f"an X.509-SVID for {received.spiffe_id!r}", error) from error
    return VerifiedX509Svid(
        spiffe_id=claimed, hint=received.hint, chain=chain, key=key, authorities=authorities
    )


def parse_x509_bundles(
    bundles: Mapping[str, bytes],
) -> dict[TrustDomain, tuple[x509.Certificate, ...]]:
    """Parse X.509 bundles of the Workload API: DER by trust domain ID.

    Raises:
        UntrustedAnswerError: a bundle cannot be parsed.
    """
    parsed = {}
    for name, der in sorted(bundles.items()):
        try:
            parsed[_trust_domain(name)] = parse_certificates(der)
        except ValueError as error:
            raise UntrustedAnswerError(f"an X.509 bundle of {name!r}", error) from error
    return parsed


def parse_jwt_bundles(bundles: Mapping[str, bytes]) -> dict[TrustDomain, TrustBundle]:
    """Parse JWT bundles of the Workload API: JWK Sets by trust domain ID.

    Raises:
        UntrustedAnswerError: a bundle cannot be parsed.
    """
    parsed = {}
    for name, jwks in sorted(bundles.items()):
        try:
            domain = _trust_domain(name)
            parsed[domain] = _bundle(domain, jwt_authorities=parse_jwks(domain, jwks))
        except ValueError as error:
            raise UntrustedAnswerError(f"a JWT bundle of {name!r}", error) from error
    return parsed


def verify_jwt(
    received: ReceivedJwtSvid,
    audiences: Sequence[str],
    bundles: Mapping[TrustDomain, TrustBundle],
    now: datetime,
) -> ValidatedJwtSvid:
    """Verify a token for each of its audiences.

    Raises:
        UntrustedAnswerError: the token is not valid for one of them.
    """
    what = f"a JWT-SVID for {received.spiffe_id!r}"
    try:
        *_, valid = (validate_jwt_svid(received.token, each, bundles, now) for each in audiences)
    except VouchdError as error:
        raise UntrustedAnswerError(what, error) from error
    if str(valid.spiffe_id) != received.spiffe_id:
        raise UntrustedAnswerError(what, "the token is for another SPIFFE ID")
    return valid


def parse_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Parse concatenated DER certificates (SPIFFE Workload API section 5.2.1).

    Raises:
        ValueError: the data is empty or holds anything else.
    """
    if not data:
        raise ValueError("it contains no certificate")
    try:
        return tuple(map(x509.load_der_x509_certificate, _split(data)))
    except ValueError:
        raise ValueError("it contains bytes that are no DER certificate") from None


def _split(data: bytes) -> Iterator[bytes]:
    """Split concatenated DER values by their lengths (X.690 section 8.1.3)."""
    while data:
        header, length = 2, data[1] if len(data) > 1 else 0
        if length & 0x80:
            header += length & 0x7F
            length = int.from_bytes(data[2:header], "big")
        yield data[: header + length]
        data = data[header + length :]


def _parse_key(der: bytes) -> PrivateKey:
    try:
        key = load_der_private_key(der, password=None)
    except (ValueError, TypeError):
        raise ValueError("its private key is not PKCS#8") from None
    keys.check_public(key.public_key())
    return key  # type: ignore[return-value]  # check_public accepts the same types


def _trust_domain(name: str) -> TrustDomain:
    return TrustDomain(name.removeprefix(SCHEME))


def _bundle(
    trust_domain: TrustDomain,
    x509_authorities: tuple[x509.Certificate, ...] = (),
    jwt_authorities: Mapping[str, keys.PublicKey] | None = None,
) -> TrustBundle:
    return TrustBundle(
        trust_domain=trust_domain,
        x509_authorities=x509_authorities,
        jwt_authorities=jwt_authorities or {},
        sequence=0,
        refresh_hint=DEFAULT_REFRESH_HINT,
    )
