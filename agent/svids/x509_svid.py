"""An X.509-SVID as a workload gets it: certificate and key in the form of the Workload API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.spiffe import keys

if TYPE_CHECKING:
    from datetime import datetime

    from agent.entries.identity import Identity
    from agent.spiffe.keys import PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class X509Svid:
    """An X.509-SVID with its key, made by `of`. It is replaced at `renew_at`."""

    spiffe_id: str
    hint: str
    chain_der: bytes
    key_der: bytes
    serial: int
    authority_id: str
    not_before: datetime
    not_after: datetime
    renew_at: datetime

    @classmethod
    def of(
        cls, identity: Identity, certificate: x509.Certificate, key: PrivateKey, renew_at: datetime
    ) -> Self:
        """Make the SVID of an identity from its certificate and key."""
        return cls(
            spiffe_id=str(identity.spiffe_id),
            hint=identity.hint,
            chain_der=certificate.public_bytes(Encoding.DER),
            key_der=keys.to_pkcs8_der(key),
            serial=certificate.serial_number,
            authority_id=_authority_id(certificate),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            renew_at=renew_at,
        )


def _authority_id(certificate: x509.Certificate) -> str:
    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    return (extension.value.key_identifier or b"").hex()
