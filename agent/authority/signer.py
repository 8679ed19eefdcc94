"""What the rest of the agent needs of an authority: signatures, bundles and trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cryptography import x509

    from agent.authority.jwt_issuer import JwtSvid, JwtSvidRequest
    from agent.authority.x509_issuer import X509SvidRequest
    from agent.spiffe.bundle import TrustBundle


class Authority(Protocol):
    """What is needed of the authority."""

    @property
    def bundle(self) -> TrustBundle:
        """The trust bundle of the agent's own trust domain."""
        ...

    async def be_able_to_sign(self) -> None:
        """Replace first what has ended, as all may have after a suspend."""
        ...


class JwtSigner(Protocol):
    """What is needed of the authority."""

    def sign_jwt(self, request: JwtSvidRequest) -> JwtSvid:
        """Sign.

        Raises:
            AuthorityError: it cannot, or refuses.
        """
        ...

    def trusts(self, authority_id: str) -> bool:
        """Whether what this authority signed may still be handed out."""
        ...


class X509Signer(Protocol):
    """What is needed of the authority."""

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        """Sign.

        Raises:
            AuthorityError: it cannot, or refuses.
        """
        ...

    def trusts(self, authority_id: str) -> bool:
        """Whether what this authority signed may still be handed out."""
        ...
