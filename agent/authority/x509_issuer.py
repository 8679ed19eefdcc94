"""Checks and signs certificates, in the steps of `agent.authority.issuance`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agent.authority.issuance import (
    IssuanceError,
    Prepared,
    draft_key,
    refusing_to_sign,
    require_trust_domain,
)
from agent.authority.x509_template import authority_template, leaf_template
from agent.spiffe.x509_rules import check_x509_authority, check_x509_svid

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from cryptography import x509

    from agent.authority.x509_template import X509SvidRequest, X509Template
    from agent.spiffe.ids import TrustDomain
    from agent.spiffe.keys import PrivateKey, PublicKey

    AuthorityProfile = Callable[[TrustDomain, PublicKey, datetime, timedelta], X509Template]
    LeafProfile = Callable[[X509SvidRequest, x509.Certificate, datetime], X509Template]


@dataclass(frozen=True, slots=True, kw_only=True)
class _X509Draft:
    template: X509Template
    signed_bytes: bytes

    def sign(self, key: PrivateKey) -> x509.Certificate:
        certificate = self.template.sign(key)
        if certificate.tbs_certificate_bytes != self.signed_bytes:
            raise IssuanceError("the signed certificate differs from the draft that was checked")
        return certificate


PreparedX509Svid: TypeAlias = Prepared[_X509Draft]


def create_x509_authority(
    trust_domain: TrustDomain,
    key: PrivateKey,
    *,
    now: datetime,
    ttl: timedelta,
    profile: AuthorityProfile = authority_template,
) -> x509.Certificate:
    """Create the self-signed certificate of a new authority.

    Takes as long as `keys.generate`: the draft needs its own key.

    Raises:
        IssuanceError: the key is not acceptable, or `ttl` is too short.
    """
    with refusing_to_sign(f"an authority of {trust_domain}"):
        template = profile(trust_domain, key.public_key(), now, ttl)
        draft = template.sign(draft_key(key))
        template.check(draft)
        check_x509_authority(draft, trust_domain)
    return _X509Draft(template=template, signed_bytes=draft.tbs_certificate_bytes).sign(key)


class X509Issuer:
    """Signs X.509-SVIDs of one trust domain with one authority.

    Construction takes as long as `keys.generate`: drafts need a key.

    Args:
        certificate: the authority's certificate.
        key: the authority's key.
        trust_domain: of all SVIDs.
        profile: lays out the certificate of an SVID.

    Raises:
        IssuanceError: the certificate is not an authority's of this trust domain, or the key is not
            the certificate's.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        key: PrivateKey,
        trust_domain: TrustDomain,
        profile: LeafProfile = leaf_template,
    ) -> None:
        with refusing_to_sign(f"for {trust_domain} with this authority"):
            check_x509_authority(certificate, trust_domain)
            if certificate.public_key() != key.public_key():
                raise ValueError("the key is not the certificate's")
        self._certificate = certificate
        self._key = key
        self._trust_domain = trust_domain
        self._profile = profile
        self._draft_key = draft_key(key)

    def prepare(self, request: X509SvidRequest, now: datetime) -> PreparedX509Svid:
        """Build and check an X.509-SVID without the authority's key.

        Raises:
            IssuanceError: it may not be signed; the message says why.
        """
        with refusing_to_sign(f"an X.509-SVID for {request.spiffe_id}"):
            require_trust_domain(request.spiffe_id, self._trust_domain)
            template = self._profile(request, self._certificate, now)
            draft = template.sign(self._draft_key)
            template.check(draft)
            if check_x509_svid(draft) != request.spiffe_id:
                raise ValueError("the certificate has another SPIFFE ID than the request")
        signed_bytes = draft.tbs_certificate_bytes
        return Prepared(self, _X509Draft(template=template, signed_bytes=signed_bytes))

    def issue(self, prepared: PreparedX509Svid) -> x509.Certificate:
        """Sign a draft that `prepare` of this issuer returned; works once.

        Raises:
            IssuanceError: it was issued before, another issuer prepared it, or the signed content
                differs from the draft.
        """
        return prepared.redeem(self).sign(self._key)
