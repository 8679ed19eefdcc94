"""What the rest of the agent needs of an authority: signatures, the trust bundle, and trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cryptography import x509

    from agent.authority.jwt_issuer import JwtSvid, JwtSvidRequest
    from agent.authority.x509_template import X509SvidRequest
    from agent.spiffe.bundle import TrustBundle


class Signer(Protocol):
    """An authority of one trust domain: embedded, or above this host."""

    @property
    def bundle(self) -> TrustBundle:
        """The current trust bundle of the trust domain."""
        ...

    async def ensure_can_sign(self) -> None:
        """Replace an authority that has expired, as all may have after a suspend.

        Returns at once in all other cases, and also if the replacement fails: `sign_x509` and
        `sign_jwt` then raise.
        """
        ...

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        """Issue an X.509-SVID.

        Raises:
            AuthorityError: the authority cannot sign now, or the request breaks a rule.
        """
        ...

    def sign_jwt(self, request: JwtSvidRequest) -> JwtSvid:
        """Issue a JWT-SVID.

        Raises:
            AuthorityError: the authority cannot sign now, or the request breaks a rule.
        """
        ...

    def trusts(self, authority_id: str) -> bool:
        """Whether an SVID of this authority may still be handed out: it is not tainted."""
        ...
