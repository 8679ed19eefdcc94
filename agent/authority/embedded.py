"""The embedded authority: its keys on disk, its signatures, its bundle.

* Created on first start; what is damaged or belongs to another trust domain is an error and stays
  as it is.
* A new state is on disk, as a whole, before anything is signed with it or anybody sees it
  (`rotation` says which state comes next): whenever the agent is killed, it goes on with the state
  before the step, or the one after it.
* Whoever holds on to the bundle is told when it changes.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from agent.authority import rotation
from agent.authority.authority_set import (
    AuthorityKind,
    AuthoritySet,
    JwtAuthority,
    State,
    X509Authority,
)
from agent.authority.jwt_issuer import JwtIssuer, new_kid
from agent.authority.keystore import KeystoreError
from agent.authority.rotation import CLOCK_STEP, Event
from agent.authority.x509_issuer import X509Issuer, create_x509_authority
from agent.errors import RequestError
from agent.spiffe import keys
from agent.spiffe.lifetimes import LAST_PART, MIN_LIFE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

    from cryptography import x509
    from structlog.typing import FilteringBoundLogger

    from agent.authority.jwt_issuer import JwtSvid, JwtSvidRequest
    from agent.authority.keystore import Keystore
    from agent.authority.rotation import Step
    from agent.authority.x509_issuer import X509SvidRequest
    from agent.clock import Clock
    from agent.spiffe.bundle import TrustBundle
    from agent.spiffe.ids import TrustDomain
    from agent.spiffe.keys import KeyType

P = ParamSpec("P")
T = TypeVar("T")

FILE = "authority.json"
# How often it is asked whether a step is due; that is a matter of hours.
TICK_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityPolicy:
    """What new authorities are like."""

    trust_domain: TrustDomain
    key_type: KeyType
    ttl: timedelta

    @property
    def longest_svid(self) -> timedelta:
        """How long an SVID may live."""
        return self.ttl / LAST_PART


class RotationError(RequestError):
    """A step that an operator asked for is not possible now; the message says what is."""


class EmbeddedAuthority:
    """Signs with the active authorities of one trust domain. `open` makes it."""

    def __init__(
        self,
        authorities: AuthoritySet,
        policy: AuthorityPolicy,
        keystore: Keystore,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self.policy = policy
        self._keystore = keystore
        self._clock = clock
        self._log = log
        self._listeners: list[Callable[[AuthorityKind], object]] = []
        self._changing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "authority")
        self._failure = ""
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
    ) -> EmbeddedAuthority:
        """Load the authorities from the keystore, or make and store the first ones.

        Raises:
            KeystoreError: what is stored cannot be used, or nothing can be stored.
        """
        stored = keystore.read(FILE)
        authorities = (
            _first(policy, clock.now()) if stored is None else _parse(stored, policy, keystore)
        )
        if authorities.longest_svid < policy.longest_svid:
            authorities = replace(authorities, longest_svid=policy.longest_svid)
        if authorities.to_json() != stored:
            keystore.write(FILE, authorities.to_json())
        authority = cls(authorities, policy, keystore, clock, log)
        authority.created = stored is None
        return authority

    @property
    def bundle(self) -> TrustBundle:
        """The trust bundle as of now."""
        return self._signers.bundle

    @property
    def authorities(self) -> AuthoritySet:
        """All of them, with their private keys."""
        return self._signers.authorities

    @property
    def next_steps(self) -> tuple[Step, ...]:
        """What happens next, soonest first."""
        return rotation.next_steps(self.authorities, self._clock.now())

    @property
    def failure(self) -> str:
        """Why the last step that was due could not be taken; empty if it could."""
        return self._failure

    async def adopt(self, policy: AuthorityPolicy) -> None:
        """Make new authorities by another policy, and let SVIDs live as long as it allows.

        Raises:
            KeystoreError: that they may live longer cannot be stored.
        """
        async with self._changing:
            if self.authorities.longest_svid < policy.longest_svid:
                longer = replace(self.authorities, longest_svid=policy.longest_svid)
                await self._change(longer)
            self.policy = policy

    def trusts(self, authority_id: str) -> bool:
        """Whether what this authority signed may still be handed out."""
        return authority_id in self._signers.trusted

    def on_change(self, listener: Callable[[AuthorityKind], object]) -> None:
        """Have `listener` called after every change of the bundle, and after a taint."""
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
        """Take the steps that come due, for ever."""
        while True:
            await self.catch_up()
            await self._clock.sleep(TICK_SECONDS)

    def close(self) -> None:
        """Finish writing, if that is going on."""
        self._thread.shutdown()

    async def catch_up(self) -> None:
        """Take every step that is due.

        One that cannot be taken is logged and tried again later: the active authority still signs,
        with a sixth of its life left to mend this.
        """
        if not self._due():
            return
        async with self._changing:
            try:
                while step := self._due():
                    await self._take(step)
                self._failure = ""
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end this loop
                self._failure = str(error)
                self._log.error("authority not replaced", reason=str(error))

    @property
    def can_sign(self) -> bool:
        """Whether the active authorities are of use now."""
        return self._signers.of_use_from <= self._clock.now() < self._signers.of_use_until

    async def be_able_to_sign(self) -> None:
        """Return at once, unless an active authority is of no use, as after a suspend.

        Then it is replaced first, if that is possible at all. What can wait is left to `run`: an
        RSA key takes seconds to make.
        """
        if not self.can_sign and not self._failure:
            await self.catch_up()

    async def prepare(self, kind: AuthorityKind) -> str:
        """Make a successor now; its ID.

        Raises:
            RotationError: one is prepared already.
            KeystoreError: it cannot be stored.
        """
        async with self._changing:
            with _refusal():
                return await self._prepare(kind)

    async def activate(self, kind: AuthorityKind) -> str:
        """Have the prepared authority sign now; its ID.

        Raises:
            RotationError: none is prepared.
            KeystoreError: the new state cannot be stored.
        """
        async with self._changing:
            with _refusal():
                await self._change(rotation.activate(self.authorities, kind, self._clock.now()))
        return next(a.id for a in self.authorities.of(kind) if a.state is State.ACTIVE)

    async def taint(self, authority_id: str) -> None:
        """Replace at once every SVID that this authority signed.

        Raises:
            RotationError: there is no such authority, or it still signs.
            KeystoreError: the new state cannot be stored.
        """
        async with self._changing:
            with _refusal():
                now = self._clock.now()
                await self._change(rotation.taint(self.authorities, authority_id, now))

    async def revoke(self, authority_id: str) -> None:
        """Take a tainted authority out of the bundle now.

        Raises:
            RotationError: there is no such authority, or it is not tainted.
            KeystoreError: the new state cannot be stored.
        """
        async with self._changing:
            with _refusal():
                now = self._clock.now()
                await self._change(rotation.revoke(self.authorities, authority_id, now))

    def _due(self) -> Step | None:
        now = self._clock.now()
        step = rotation.next_steps(self.authorities, now)[0]
        return step if step.at <= now else None

    async def _take(self, step: Step) -> None:
        now = self._clock.now()
        match step.event:
            case Event.PREPARE:
                await self._prepare(step.kind)
            case Event.ACTIVATE:
                await self._change(rotation.activate(self.authorities, step.kind, now))
            case _:
                await self._change(rotation.without(self.authorities, step.authority_id, now))

    async def _prepare(self, kind: AuthorityKind) -> str:
        # An RSA key may take seconds to make.
        successor = await self._in_thread(_make, kind, self.policy, self._clock.now())
        await self._change(rotation.prepare(self.authorities, successor))
        return successor.id

    async def _change(self, authorities: AuthoritySet) -> None:
        """Store the new state, then sign with it, then tell everybody; in this order."""
        before = self._signers
        signers = await self._in_thread(_Signers, authorities, before)
        await self._in_thread(self._keystore.write, FILE, authorities.to_json())
        self._signers = signers
        for kind in AuthorityKind:
            self._log_changes(kind, before.authorities)
            if signers.trust(kind) != before.trust(kind):
                for listener in self._listeners:
                    listener(kind)

    def _log_changes(self, kind: AuthorityKind, before: AuthoritySet) -> None:
        then, now = _states(before, kind), _states(self.authorities, kind)
        for authority_id in {**then, **now}:
            if then.get(authority_id) != (state := now.get(authority_id)):
                self._log.info(
                    "authority changed",
                    kind=str(kind),
                    authority=authority_id,
                    state=str(state or "gone"),
                    sequence=self.authorities.sequence,
                )

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(work, *arguments, **keywords))


@contextmanager
def _refusal() -> Iterator[None]:
    """A rule of `rotation` that is broken by what an operator asked for."""
    try:
        yield
    except ValueError as error:
        raise RotationError(str(error)) from error


class _Signers:
    """A set of authorities, ready to sign. Slow to make for RSA: issuers make keys of their own."""

    def __init__(self, authorities: AuthoritySet, former: _Signers | None = None) -> None:
        self.authorities = authorities
        self.bundle = authorities.bundle()
        self.trusted = frozenset(a.id for a in authorities.all if a.state is not State.TAINTED)
        self.active = authorities.active_x509, authorities.active_jwt
        # Asked for with every call, and slow to read off a certificate.
        self.of_use_from = max(a.not_before for a in self.active) - CLOCK_STEP
        self.of_use_until = min(a.not_after for a in self.active) - MIN_LIFE
        x509_authority, jwt_authority = self.active
        self.x509: X509Issuer
        self.jwt: JwtIssuer
        if former is not None and former.active[0].id == x509_authority.id:
            self.x509 = former.x509
        else:
            self.x509 = X509Issuer(
                x509_authority.certificate, x509_authority.key, authorities.trust_domain
            )
        if former is not None and former.active[1].id == jwt_authority.id:
            self.jwt = former.jwt
        else:
            self.jwt = JwtIssuer(
                jwt_authority.kid,
                jwt_authority.key,
                jwt_authority.not_after,
                authorities.trust_domain,
            )

    def trust(self, kind: AuthorityKind) -> tuple[tuple[str, bool], ...]:
        """Which authorities of a kind are in the bundle, and whether what they signed counts."""
        return tuple((a.id, a.id in self.trusted) for a in self.authorities.of(kind))


def _states(authorities: AuthoritySet, kind: AuthorityKind) -> dict[str, State]:
    return {a.id: a.state for a in authorities.of(kind)}


def _first(policy: AuthorityPolicy, now: datetime) -> AuthoritySet:
    return AuthoritySet(
        trust_domain=policy.trust_domain,
        sequence=1,
        longest_svid=policy.longest_svid,
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


def _make(
    kind: AuthorityKind, policy: AuthorityPolicy, now: datetime
) -> X509Authority | JwtAuthority:
    return _make_x509(policy, now) if kind is AuthorityKind.X509 else _make_jwt(policy, now)


def _make_x509(policy: AuthorityPolicy, now: datetime) -> X509Authority:
    key = keys.generate(policy.key_type)
    certificate = create_x509_authority(policy.trust_domain, key, now=now, ttl=policy.ttl)
    return X509Authority(state=State.ACTIVE, since=now, certificate=certificate, key=key)


def _make_jwt(policy: AuthorityPolicy, now: datetime) -> JwtAuthority:
    return JwtAuthority(
        state=State.ACTIVE,
        since=now,
        kid=new_kid(),
        key=keys.generate(policy.key_type),
        not_before=now.replace(microsecond=0),
        not_after=(now + policy.ttl).replace(microsecond=0),
    )
