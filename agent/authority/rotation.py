"""Which authorities a trust domain has, which of them signs, and what comes next.

| state    | signs | in the bundle | becomes                                                    |
|----------|-------|---------------|------------------------------------------------------------|
| PREPARED | no    | yes           | ACTIVE, when the active one comes to its end               |
| ACTIVE   | yes   | yes           | RETIRED, when the prepared one becomes active              |
| RETIRED  | no    | yes           | gone, when the last SVID that it signed has expired        |
| TAINTED  | no    | yes           | gone, like a retired one, or when an operator revokes it   |

An operator may take each step before its time; `_TABLE` is all there is. Of each kind exactly one
is ACTIVE and at most one PREPARED, always: an `AuthoritySet` that breaks this cannot be made. Every
change of the bundle raises its sequence in the same step (TB-05).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from agent.authority.authority_set import (
    Authority,
    AuthorityKind,
    AuthoritySet,
    JwtAuthority,
    State,
    X509Authority,
)
from agent.spiffe.lifetimes import LAST_MOMENT, LAST_PART

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

_Authority = TypeVar("_Authority", X509Authority, JwtAuthority)
# A successor is in the bundle for a third of a life before it signs.
FIRST_PART = 2
# For verifiers who learn of a new authority a little later than the workloads of this host: while
# the active one still lives, a successor that has only just been prepared has to wait this long.
PROPAGATION = timedelta(seconds=10)
# For verifiers whose clocks are behind ours: a retired authority stays for so much longer.
MARGIN = timedelta(hours=1)
# An authority that was made further in the future than this was made by a wrong clock, and peers
# would refuse all that it signs; smaller steps back are a matter of course.
CLOCK_STEP = timedelta(minutes=1)


class Event(StrEnum):
    """What happens to an authority."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    SUCCEED = "succeed"
    TAINT = "taint"
    REVOKE = "revoke"
    EXPIRE = "expire"


# `prepare` adds one that is PREPARED. None: it leaves.
_TABLE: dict[tuple[State, Event], State | None] = {
    (State.PREPARED, Event.ACTIVATE): State.ACTIVE,
    (State.ACTIVE, Event.SUCCEED): State.RETIRED,
    (State.PREPARED, Event.TAINT): State.TAINTED,
    (State.RETIRED, Event.TAINT): State.TAINTED,
    (State.TAINTED, Event.REVOKE): None,
    (State.PREPARED, Event.EXPIRE): None,
    (State.RETIRED, Event.EXPIRE): None,
    (State.TAINTED, Event.EXPIRE): None,
}
_ADVICE: dict[tuple[State, Event], str] = {
    (State.ACTIVE, Event.TAINT): "it still signs: prepare and activate another one first",
    (State.ACTIVE, Event.REVOKE): "it still signs: prepare and activate another one, and taint it",
    (State.PREPARED, Event.REVOKE): "taint it first",
    (State.RETIRED, Event.REVOKE): "taint it first, so that what it signed is replaced",
    (State.TAINTED, Event.TAINT): "it is tainted already",
}


# --- the steps -----------------------------------------------------------------------------------


def prepare(authorities: AuthoritySet, successor: Authority) -> AuthoritySet:
    """Add a successor, which is in the bundle from now on and does not sign yet.

    Raises:
        ValueError: there is a prepared one already, or it breaks a rule of `AuthoritySet`.
    """
    added = replace(successor, state=State.PREPARED)
    if isinstance(added, X509Authority):
        return _with(authorities, x509=(*authorities.x509, added))
    return _with(authorities, jwt=(*authorities.jwt, added))


def activate(authorities: AuthoritySet, kind: AuthorityKind, now: datetime) -> AuthoritySet:
    """Let the prepared authority of a kind sign, and retire the active one.

    Raises:
        ValueError: none is prepared.
    """
    if not any(a.state is State.PREPARED for a in authorities.of(kind)):
        raise ValueError(f"no {kind} authority is prepared: prepare one first")
    events = {State.PREPARED: Event.ACTIVATE, State.ACTIVE: Event.SUCCEED}
    return _each(authorities, lambda a: events.get(a.state) if a.kind is kind else None, now)


def taint(authorities: AuthoritySet, authority_id: str, now: datetime) -> AuthoritySet:
    """No longer trust what an authority signed; it stays in the bundle until it is revoked.

    Raises:
        ValueError: there is none of this ID, or it is the active one.
    """
    return _one(authorities, authority_id, Event.TAINT, now)


def revoke(authorities: AuthoritySet, authority_id: str, now: datetime) -> AuthoritySet:
    """Take a tainted authority out of the bundle.

    Raises:
        ValueError: there is none of this ID, or it is not tainted.
    """
    return _one(authorities, authority_id, Event.REVOKE, now)


def without(authorities: AuthoritySet, authority_id: str, now: datetime) -> AuthoritySet:
    """Without an authority whose time is over.

    Raises:
        ValueError: there is none of this ID, or it is the active one.
    """
    return _one(authorities, authority_id, Event.EXPIRE, now)


# --- and when they come --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Step:
    """What happens next to an authority, or to a kind that gets a new one, and when."""

    at: datetime
    event: Event
    kind: AuthorityKind
    authority_id: str = ""


def next_steps(authorities: AuthoritySet, now: datetime) -> tuple[Step, ...]:
    """The coming steps, soonest first; what is overdue is among them.

    What an authority has in front of it may change with every step.
    """
    x509_steps = _steps(authorities.x509, AuthorityKind.X509, authorities.longest_svid, now)
    jwt_steps = _steps(authorities.jwt, AuthorityKind.JWT, authorities.longest_svid, now)
    return tuple(sorted((*x509_steps, *jwt_steps)))


def _steps(
    authorities: tuple[Authority, ...], kind: AuthorityKind, longest_svid: timedelta, now: datetime
) -> Iterator[Step]:
    active = next(a for a in authorities if a.state is State.ACTIVE)
    prepared = next((a for a in authorities if a.state is State.PREPARED), None)
    if prepared is None:
        at = min(now, active.not_after) if _begins_later(active, now) else _half_life(active)
        yield Step(at=at, event=Event.PREPARE, kind=kind)
    elif prepared.not_after <= now or _begins_later(prepared, now):
        yield Step(at=now, event=Event.EXPIRE, kind=kind, authority_id=prepared.id)
    else:
        at = _handover(active, prepared, now)
        yield Step(at=at, event=Event.ACTIVATE, kind=kind, authority_id=prepared.id)
    for authority in authorities:
        if authority.state in {State.RETIRED, State.TAINTED}:
            at = _leaves_at(authority, longest_svid)
            yield Step(at=at, event=Event.EXPIRE, kind=kind, authority_id=authority.id)


def _half_life(active: Authority) -> datetime:
    return active.not_after - (active.not_after - active.not_before) / FIRST_PART


def _handover(active: Authority, prepared: Authority, now: datetime) -> datetime:
    if _begins_later(active, now):
        return now
    last_part = (active.not_after - active.not_before) / LAST_PART
    known_by = prepared.since + min(PROPAGATION, last_part / 2)
    return min(max(active.not_after - last_part, known_by), active.not_after - LAST_MOMENT)


def _leaves_at(former: Authority, longest_svid: timedelta) -> datetime:
    """When the last SVID that it signed has expired, and verifiers' clocks agree on that."""
    last = min(former.not_after, former.since + longest_svid)
    return last + min(MARGIN, (former.not_after - former.not_before) / LAST_PART)


def _begins_later(authority: Authority, now: datetime) -> bool:
    return now < authority.not_before - CLOCK_STEP


# --- how they are taken --------------------------------------------------------------------------


def _one(authorities: AuthoritySet, authority_id: str, event: Event, now: datetime) -> AuthoritySet:
    found = [a for a in authorities.all if a.id == authority_id]
    if not found:
        raise ValueError(f"there is no authority {authority_id!r}")
    [authority] = found
    if (authority.state, event) not in _TABLE:
        advice = _ADVICE.get((authority.state, event), "it signs")
        raise ValueError(
            f"cannot {event} {authority.kind} authority {authority_id}, which is"
            f" {authority.state}: {advice}"
        )
    return _each(authorities, lambda a: event if a is authority else None, now)


def _each(
    authorities: AuthoritySet, event_of: Callable[[Authority], Event | None], now: datetime
) -> AuthoritySet:
    """Have to each authority happen what `event_of` says."""

    def after(group: tuple[_Authority, ...]) -> Iterator[_Authority]:
        for authority in group:
            event = event_of(authority)
            if event is None:
                yield authority
            elif (state := _TABLE[authority.state, event]) is not None:
                yield replace(authority, state=state, since=now)

    return _with(
        authorities, x509=tuple(after(authorities.x509)), jwt=tuple(after(authorities.jwt))
    )


def _with(
    authorities: AuthoritySet,
    *,
    x509: tuple[X509Authority, ...] | None = None,
    jwt: tuple[JwtAuthority, ...] | None = None,
) -> AuthoritySet:
    """The new set, with the next sequence if its bundle is another one."""
    x509_after = authorities.x509 if x509 is None else x509
    jwt_after = authorities.jwt if jwt is None else jwt
    changed = replace(authorities, x509=x509_after, jwt=jwt_after)
    is_same = [a.id for a in authorities.all] == [a.id for a in changed.all]
    return changed if is_same else replace(changed, sequence=authorities.sequence + 1)
