"""The embedded authority: its keys on disk, its signatures, its trust bundle.

* The first start creates the keys. A damaged file, or a file of another trust domain, is an error
  and stays as it is.
* A new state is on disk as a whole before an authority signs with it or a listener sees it
  (`agent.authority.rotation` has the states). Killed at any moment, the agent continues with the
  state before the step or with the state after it.
* Each change of the bundle is reported to the listeners.
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
from agent.authority.rotation import Event
from agent.authority.x509_issuer import X509Issuer, create_x509_authority
from agent.errors import RequestError
from agent.spiffe import keys, lifetimes
from agent.spiffe.lifetimes import CLOCK_STEP, MIN_LIFETIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

    from cryptography import x509
    from structlog.typing import FilteringBoundLogger

    from agent.authority.jwt_issuer import JwtSvid, JwtSvidRequest
    from agent.authority.keystore import Keystore
    from agent.authority.rotation import Step
    from agent.authority.x509_template import X509SvidRequest
    from agent.clock import Clock
    from agent.spiffe.bundle import TrustBundle
    from agent.spiffe.ids import TrustDomain
    from agent.spiffe.keys import KeyType

P = ParamSpec("P")
T = TypeVar("T")

FILE = "authority.json"
# How often `run` looks for due steps. Steps are hours apart.
TICK_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityPolicy:
    """The properties of new authorities. `ttl` is their lifetime."""

    trust_domain: TrustDomain
    key_type: KeyType
    ttl: timedelta

    @property
    def longest_svid(self) -> timedelta:
        """The longest lifetime of an SVID of these authorities."""
        return lifetimes.longest_svid(self.ttl)


class RotationError(RequestError):
    """The step that an operator asked for is not possible now; the message names one that is."""


class EmbeddedAuthority:
    """A Signer with its own keys, for one trust domain. Made by `open`; `close` ends its thread."""

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
        # Held during each step, so that two steps never start from the same state.
        self._changing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "authority")
        self._failure = ""
        self.created = False
        """Whether this is the first start with this data directory."""
        self._issuers = _Issuers(authorities)

    @classmethod
    def open(
        cls,
        policy: AuthorityPolicy,
        keystore: Keystore,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> EmbeddedAuthority:
        """Load the authorities from the keystore, or create and store the first ones.

        Raises:
            KeystoreError: the stored authorities cannot be used, or new ones cannot be stored.
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
        """The current trust bundle."""
        return self._issuers.bundle

    @property
    def authorities(self) -> AuthoritySet:
        """All authorities, with their private keys."""
        return self._issuers.authorities

    @property
    def next_steps(self) -> tuple[Step, ...]:
        """The next step of each authority, soonest first."""
        return rotation.next_steps(self.authorities, self._clock.now())

    @property
    def failure(self) -> str:
        """Why a due step failed; empty when no step is due."""
        return self._failure

    @property
    def can_sign(self) -> bool:
        """Whether the active authorities of both kinds are valid now."""
        return self._issuers.valid_from <= self._clock.now() < self._issuers.valid_until

    def trusts(self, authority_id: str) -> bool:
        """Whether an SVID of this authority may still be handed out: it is not tainted."""
        return authority_id in self._issuers.trusted

    def on_change(self, listener: Callable[[AuthorityKind], object]) -> None:
        """Call `listener` with the kind after each change of the bundle, and after a taint."""
        self._listeners.append(listener)

    # --- signing ---------------------------------------------------------------------------------

    async def ensure_can_sign(self) -> None:
        """Replace an authority that has expired, as all may have after a suspend.

        Returns at once in all other cases: a step that is due while the active authority still
        signs is left to `run`, because an RSA key takes seconds to generate. After a failed step
        only `run` tries again, so that callers do not repeat it at each call.
        """
        if not self.can_sign and not self._failure:
            await self.take_due_steps()

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        """Issue an X.509-SVID, checked against the SVID rules before it is signed.

        Raises:
            IssuanceError: the authority has expired, or the request breaks a rule.
        """
        return self._issuers.x509.issue(self._issuers.x509.prepare(request, self._clock.now()))

    def sign_jwt(self, request: JwtSvidRequest) -> JwtSvid:
        """Issue a JWT-SVID, checked against the SVID rules before it is signed.

        Raises:
            IssuanceError: the authority has expired, or the request breaks a rule.
        """
        return self._issuers.jwt.issue(self._issuers.jwt.prepare(request, self._clock.now()))

    # --- rotation --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take due steps until cancelled."""
        while True:
            await self.take_due_steps()
            await self._clock.sleep(TICK_SECONDS)

    def close(self) -> None:
        """Wait for a write that is under way, and end the thread."""
        self._thread.shutdown()

    async def take_due_steps(self) -> None:
        """Take every step that is due.

        A step that fails is logged and tried again at the next tick. The active authority signs
        meanwhile: a sixth of its lifetime is left to repair the cause.
        """
        if not self._due():
            self._failure = ""  # an operator may have taken the failed step
            return
        async with self._changing:
            try:
                while step := self._due():
                    await self._take(step)
                self._failure = ""
            except Exception as error:  # noqa: BLE001 - no failure may end this loop
                self._failure = str(error)
                self._log.error("authority step failed", reason=str(error))

    async def adopt(self, policy: AuthorityPolicy) -> None:
        """Use another policy for new authorities, and allow SVIDs the lifetime it gives.

        Raises:
            KeystoreError: a longer lifetime of SVIDs cannot be stored.
        """
        async with self._changing:
            if self.authorities.longest_svid < policy.longest_svid:
                longer = replace(self.authorities, longest_svid=policy.longest_svid)
                await self._change(longer)
            self.policy = policy

    async def prepare(self, kind: AuthorityKind) -> str:
        """Create a successor now and return its ID.

        Raises:
            RotationError: one is prepared already.
            KeystoreError: the new state cannot be stored.
        """
        async with self._changing:
            with _rotation_rules():
                return await self._prepare(kind)

    async def activate(self, kind: AuthorityKind) -> str:
        """Make the prepared authority the active one now and return its ID.

        Raises:
            RotationError: none is prepared.
            KeystoreError: the new state cannot be stored.
        """
        async with self._changing:
            with _rotation_rules():
                await self._change(rotation.activate(self.authorities, kind, self._clock.now()))
        return next(a.id for a in self.authorities.of(kind) if a.state is State.ACTIVE)

    async def taint(self, authority_id: str) -> None:
        """Replace every SVID that this authority signed, at once.

        Raises:
            RotationError: no authority has this ID, or it is the active one.
            KeystoreError: the new state cannot be stored.
        """
        async with self._changing:
            with _rotation_rules():
                now = self._clock.now()
                await self._change(rotation.taint(self.authorities, authority_id, now))

    async def revoke(self, authority_id: str) -> None:
        """Remove a tainted authority from the bundle now.

        Raises:
            RotationError: no authority has this ID, or it is not tainted.
            KeystoreError: the new state cannot be stored.
        """
        async with self._changing:
            with _rotation_rules():
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
                await self._change(rotation.expire(self.authorities, step.authority_id, now))

    async def _prepare(self, kind: AuthorityKind) -> str:
        # In the thread: an RSA key may take seconds to generate.
        successor = await self._in_thread(_create, kind, self.policy, self._clock.now())
        await self._change(rotation.prepare(self.authorities, successor))
        return successor.id

    async def _change(self, authorities: AuthoritySet) -> None:
        """Store the new state, then sign with it, then notify the listeners; in this order."""
        before = self._issuers
        issuers = await self._in_thread(_Issuers, authorities, before)
        await self._in_thread(self._keystore.write, FILE, authorities.to_json())
        self._issuers = issuers
        for kind in AuthorityKind:
            self._log_changes(kind, before.authorities)
            if issuers.trust(kind) != before.trust(kind):
                for listener in self._listeners:
                    listener(kind)

    def _log_changes(self, kind: AuthorityKind, before: AuthoritySet) -> None:
        then, now = _states(before, kind), _states(self.authorities, kind)
        for authority_id in {**then, **now}:
            if then.get(authority_id) != (state := now.get(authority_id)):
                self._log.info(
                    "authority changed",
                    kind=str(kind),
                    authority_id=authority_id,
                    state=str(state or "removed"),
                    bundle_sequence=self.authorities.sequence,
                )

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(work, *arguments, **keywords))


@contextmanager
def _rotation_rules() -> Iterator[None]:
    """Report a transition that `rotation` refuses as an error of the operator's request."""
    try:
        yield
    except ValueError as error:
        raise RotationError(str(error)) from error


class _Issuers:
    """The issuers of an authority set, and the answers that each call needs.

    Slow for RSA: each issuer generates a key for its drafts. Issuers of authorities that are still
    active are taken from `former`.
    """

    def __init__(self, authorities: AuthoritySet, former: _Issuers | None = None) -> None:
        self.authorities = authorities
        self.bundle = authorities.bundle()
        self.trusted = frozenset(a.id for a in authorities.all if a.state is not State.TAINTED)
        self.active = authorities.active_x509, authorities.active_jwt
        # Computed once: each call needs them, and a certificate is slow to read.
        self.valid_from = max(a.not_before for a in self.active) - CLOCK_STEP
        self.valid_until = min(a.not_after for a in self.active) - MIN_LIFETIME
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
        """The authorities of a kind in the bundle, each with whether its SVIDs are trusted."""
        return tuple((a.id, a.id in self.trusted) for a in self.authorities.of(kind))


def _states(authorities: AuthoritySet, kind: AuthorityKind) -> dict[str, State]:
    return {a.id: a.state for a in authorities.of(kind)}


def _first(policy: AuthorityPolicy, now: datetime) -> AuthoritySet:
    return AuthoritySet(
        trust_domain=policy.trust_domain,
        sequence=1,
        longest_svid=policy.longest_svid,
        x509=(_create_x509(policy, now),),
        jwt=(_create_jwt(policy, now),),
    )


def _parse(stored: bytes, policy: AuthorityPolicy, keystore: Keystore) -> AuthoritySet:
    try:
        return AuthoritySet.parse(stored, policy.trust_domain)
    except ValueError as error:
        raise KeystoreError(
            f"{keystore.directory / FILE} cannot be used: {error}; restore it from a backup, or "
            "move it away: vouchd then creates new keys, which no peer trusts yet"
        ) from error


def _create(
    kind: AuthorityKind, policy: AuthorityPolicy, now: datetime
) -> X509Authority | JwtAuthority:
    return _create_x509(policy, now) if kind is AuthorityKind.X509 else _create_jwt(policy, now)


def _create_x509(policy: AuthorityPolicy, now: datetime) -> X509Authority:
    key = keys.generate(policy.key_type)
    certificate = create_x509_authority(policy.trust_domain, key, now=now, ttl=policy.ttl)
    return X509Authority(state=State.ACTIVE, since=now, certificate=certificate, key=key)


def _create_jwt(policy: AuthorityPolicy, now: datetime) -> JwtAuthority:
    return JwtAuthority(
        state=State.ACTIVE,
        since=now,
        kid=new_kid(),
        key=keys.generate(policy.key_type),
        not_before=now.replace(microsecond=0),
        not_after=(now + policy.ttl).replace(microsecond=0),
    )
