"""The embedded authority: its keys on disk, its signatures, its bundle.

* Created on first start; what is damaged or belongs to another trust domain is an error and stays
  as it is.
* A new state is on disk before anything is signed with it (`rotation` says which state comes next).
* Whoever holds on to the bundle is told when it changes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent import keys
from agent.issuance import JwtIssuer, X509Issuer, create_x509_authority, new_kid
from agent.keystore import KeystoreError
from agent.rotation import AuthoritySet, JwtAuthority, Kind, State, X509Authority, due, succeed

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from cryptography import x509
    from structlog.typing import FilteringBoundLogger

    from agent.bundle import TrustBundle
    from agent.clock import Clock
    from agent.issuance import JwtSvid, JwtSvidRequest, X509SvidRequest
    from agent.keys import KeyType
    from agent.keystore import Keystore
    from agent.spiffe import TrustDomain

FILE = "authority.json"
# How often it is asked whether a successor is due; that is a matter of hours.
TICK_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityPolicy:
    """What new authorities are like."""

    trust_domain: TrustDomain
    key_type: KeyType
    ttl: timedelta


class Authority:
    """Signs with the active authorities of one trust domain. `open` makes it."""

    def __init__(
        self,
        authorities: AuthoritySet,
        policy: AuthorityPolicy,
        keystore: Keystore,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._policy = policy
        self._keystore = keystore
        self._clock = clock
        self._log = log
        self._listeners: list[Callable[[], None]] = []
        self.created = False
        """Whether this is the first start with this data directory."""
        self._signers = _Signers(authorities)

    @classmethod
    def open(
        cls,
        policy: AuthorityPolicy,
        keystore: Keystore,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> Authority:
        """Load the authorities from the keystore, or make and store the first ones.

        Raises:
            KeystoreError: what is stored cannot be used, or nothing can be stored.
        """
        stored = keystore.read(FILE)
        if stored is None:
            authorities = _first(policy, clock.now())
            keystore.write(FILE, authorities.to_json())
        else:
            authorities = _parse(stored, policy, keystore)
        authority = cls(authorities, policy, keystore, clock, log)
        authority.created = stored is None
        return authority

    @property
    def bundle(self) -> TrustBundle:
        """The trust bundle as of now."""
        return self._signers.bundle

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after every change of the bundle."""
        self._listeners.append(listener)

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        """An X.509-SVID, checked against the SVID rules before it is signed.

        Raises:
            IssuanceError: the authority has expired, or what was asked for breaks a rule.
        """
        return self._signers.x509.issue(self._signers.x509.prepare(request, self._clock.now()))

    def sign_jwt(self, request: JwtSvidRequest) -> JwtSvid:
        """A JWT-SVID.

        Raises:
            IssuanceError: the authority has expired, or what was asked for breaks a rule.
        """
        return self._signers.jwt.issue(self._signers.jwt.prepare(request, self._clock.now()))

    async def run(self) -> None:
        """Replace authorities in time, for ever."""
        while True:
            try:
                await self.replace_due()
            except Exception as error:  # noqa: BLE001 - whatever it is, the old one still signs
                # There is a sixth of its life left to mend this.
                self._log.error("authority not replaced", reason=str(error))
            await self._clock.sleep(TICK_SECONDS)

    async def replace_due(self) -> None:
        """Give every authority that comes to its end a successor.

        Raises:
            KeystoreError: the new state cannot be stored; the old one stays in use.
        """
        for kind in sorted(due(self._signers.authorities, self._clock.now())):
            # An RSA key may take seconds to make.
            successor = await asyncio.to_thread(_make, kind, self._policy, self._clock.now())
            authorities = succeed(self._signers.authorities, successor, self._clock.now())
            signers = await asyncio.to_thread(_Signers, authorities)
            await asyncio.to_thread(self._keystore.write, FILE, authorities.to_json())
            self._signers = signers
            self._log.info("authority replaced", kind=str(kind), sequence=authorities.sequence)
            for listener in self._listeners:
                listener()


class _Signers:
    """A set of authorities, ready to sign. Slow to make for RSA: issuers make keys of their own."""

    def __init__(self, authorities: AuthoritySet) -> None:
        self.authorities = authorities
        self.bundle = authorities.bundle()
        x509_authority, jwt_authority = authorities.active_x509, authorities.active_jwt
        self.x509 = X509Issuer(
            x509_authority.certificate, x509_authority.key, authorities.trust_domain
        )
        self.jwt = JwtIssuer(
            jwt_authority.kid, jwt_authority.key, jwt_authority.not_after, authorities.trust_domain
        )


def _first(policy: AuthorityPolicy, now: datetime) -> AuthoritySet:
    return AuthoritySet(
        trust_domain=policy.trust_domain,
        sequence=1,
        x509=(_make_x509(policy, now),),
        jwt=(_make_jwt(policy, now),),
    )


def _parse(stored: bytes, policy: AuthorityPolicy, keystore: Keystore) -> AuthoritySet:
    try:
        return AuthoritySet.parse(stored, policy.trust_domain)
    except ValueError as error:
        raise KeystoreError(
            f"{keystore.directory / FILE} cannot be used: {error}; restore it from a backup, or "
            "move it away to begin with new keys that nobody trusts yet"
        ) from error


def _make(kind: Kind, policy: AuthorityPolicy, now: datetime) -> X509Authority | JwtAuthority:
    return _make_x509(policy, now) if kind is Kind.X509 else _make_jwt(policy, now)


def _make_x509(policy: AuthorityPolicy, now: datetime) -> X509Authority:
    key = keys.generate(policy.key_type)
    certificate = create_x509_authority(policy.trust_domain, key, now=now, ttl=policy.ttl)
    return X509Authority(state=State.ACTIVE, certificate=certificate, key=key)


def _make_jwt(policy: AuthorityPolicy, now: datetime) -> JwtAuthority:
    return JwtAuthority(
        state=State.ACTIVE,
        kid=new_kid(),
        key=keys.generate(policy.key_type),
        not_before=now.replace(microsecond=0),
        not_after=(now + policy.ttl).replace(microsecond=0),
    )
