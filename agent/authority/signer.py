"""The Protocols of an authority: `Signer` to issue SVIDs, `ManagedAuthority` to administer it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cryptography import x509

    from agent.authority.authority_set import AuthorityKind, AuthoritySet
    from agent.authority.jwt_issuer import JwtSvid, JwtSvidRequest
    from agent.authority.rotation import Step
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


class ManagedAuthority(Signer, Protocol):
    """A signer with keys that an administrator can see and rotate."""

    @property
    def authorities(self) -> AuthoritySet:
        """All authorities, with their private keys."""
        ...

    @property
    def next_steps(self) -> tuple[Step, ...]:
        """The next step of each authority, soonest first."""
        ...

    @property
    def failure(self) -> str:
        """Why a due step failed; empty when no step is due."""
        ...

    @property
    def can_sign(self) -> bool:
        """Whether the active authorities of both kinds are valid now."""
        ...

    async def prepare(self, kind: AuthorityKind) -> str:
        """Create a successor now and return its ID.

        Raises:
            RotationError: one is prepared already.
            KeystoreError: the new state cannot be stored. This holds for all four commands.
        """
        ...

    async def activate(self, kind: AuthorityKind) -> str:
        """Make the prepared authority the active one now and return its ID.

        Raises:
            RotationError: none is prepared.
        """
        ...

    async def taint(self, authority_id: str) -> None:
        """Replace every SVID that this authority signed, at once.

        Raises:
            RotationError: no authority has this ID, or it is the active one.
        """
        ...

    async def revoke(self, authority_id: str) -> None:
        """Remove a tainted authority from the bundle now.

        Raises:
            RotationError: no authority has this ID, or it is not tainted.
        """
        ...
