"""The rotation of authorities: which state follows which, and when the next step is due.

| state    | signs | in the bundle | becomes                                                       |
|----------|-------|---------------|---------------------------------------------------------------|
| PREPARED | no    | yes           | ACTIVE, a sixth of its lifetime before the active one ends    |
| ACTIVE   | yes   | yes           | RETIRED, when the prepared one becomes active                 |
| RETIRED  | no    | yes           | removed, when the last SVID it signed has expired             |
| TAINTED  | no    | yes           | removed, like a retired one, or when an operator revokes it   |

`_TABLE` holds every transition. An operator may cause each before it is due. Of each kind, exactly
one authority is ACTIVE and at most one is PREPARED: an `AuthoritySet` that breaks this cannot be
made. Each change of the bundle raises its sequence in the same step (Trust Domain and Bundle
section 4.1.1).
`agent.spiffe.lifetimes` says when each step is due.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from agent.spiffe import lifetimes
from agent.spiffe.lifetimes import CLOCK_STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

_Authority = TypeVar("_Authority", X509Authority, JwtAuthority)


class Event(StrEnum):
    """A transition of an authority."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    SUCCEED = "succeed"
    TAINT = "taint"
    REVOKE = "revoke"
    EXPIRE = "expire"


# None: the authority is removed. A PREPARED one enters by `prepare`.
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
    (State.ACTIVE, Event.TAINT): "prepare and activate another one first",
    (State.ACTIVE, Event.EXPIRE): "prepare and activate another one first",
    (State.ACTIVE, Event.REVOKE): "prepare and activate another one, then taint this one",
    (State.PREPARED, Event.REVOKE): "taint it first",
    (State.RETIRED, Event.REVOKE): "taint it first, so that the SVIDs it signed are replaced",
    (State.TAINTED, Event.TAINT): "revoke it to remove it from the bundle",
}


# --- the transitions -----------------------------------------------------------------------------


def prepare(authorities: AuthoritySet, successor: Authority) -> AuthoritySet:
    """Add a successor: it is in the bundle from now on and does not sign yet.

    Raises:
        ValueError: one is prepared already, or the successor breaks a rule of `AuthoritySet`.
    """
    added = replace(successor, state=State.PREPARED)
    if isinstance(added, X509Authority):
        return _with(authorities, x509=(*authorities.x509, added))
    return _with(authorities, jwt=(*authorities.jwt, added))


def activate(authorities: AuthoritySet, kind: AuthorityKind, now: datetime) -> AuthoritySet:
    """Make the prepared authority of a kind the active one, and retire the former.

    Raises:
        ValueError: none is prepared.
    """
    if not any(a.state is State.PREPARED for a in authorities.of(kind)):
        raise ValueError(f"no {kind} authority is prepared: prepare one first")
    events = {State.PREPARED: Event.ACTIVATE, State.ACTIVE: Event.SUCCEED}
    return _each(authorities, lambda a: events.get(a.state) if a.kind is kind else None, now)


def taint(authorities: AuthoritySet, authority_id: str, now: datetime) -> AuthoritySet:
    """Mark an authority so that the SVIDs it signed are replaced; it stays in the bundle.

    Raises:
        ValueError: no authority has this ID, or it is the active one.
    """
    return _one(authorities, authority_id, Event.TAINT, now)


def revoke(authorities: AuthoritySet, authority_id: str, now: datetime) -> AuthoritySet:
    """Remove a tainted authority.

    Raises:
        ValueError: no authority has this ID, or it is not tainted.
    """
    return _one(authorities, authority_id, Event.REVOKE, now)


def expire(authorities: AuthoritySet, authority_id: str, now: datetime) -> AuthoritySet:
    """Remove an authority that has expired.

    Raises:
        ValueError: no authority has this ID, or it is the active one.
    """
    return _one(authorities, authority_id, Event.EXPIRE, now)


# --- when they are due ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Step:
    """The next transition of an authority, or the preparation of one of a kind, and its time."""

    at: datetime
    event: Event
    kind: AuthorityKind
    authority_id: str = ""


def next_steps(authorities: AuthoritySet, now: datetime) -> tuple[Step, ...]:
    """The next step of each authority, soonest first; overdue steps included.

    Each step that is taken may change the others: call this again after it.
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
        yield Step(at=_preparation(active, now), event=Event.PREPARE, kind=kind)
    elif prepared.not_after <= now or _begins_later(prepared, now):
        yield Step(at=now, event=Event.EXPIRE, kind=kind, authority_id=prepared.id)
    else:
        at = _handover(active, prepared, now)
        yield Step(at=at, event=Event.ACTIVATE, kind=kind, authority_id=prepared.id)
    for authority in authorities:
        if authority.state in {State.RETIRED, State.TAINTED}:
            begin, end = authority.not_before, authority.not_after
            at = lifetimes.removal(begin, end, authority.since, longest_svid)
            yield Step(at=at, event=Event.EXPIRE, kind=kind, authority_id=authority.id)


def _preparation(active: Authority, now: datetime) -> datetime:
    if _begins_later(active, now):
        return min(now, active.not_after)
    return lifetimes.preparation(active.not_before, active.not_after)


def _handover(active: Authority, prepared: Authority, now: datetime) -> datetime:
    if _begins_later(active, now):
        return now
    return lifetimes.handover(active.not_before, active.not_after, prepared.since)


def _begins_later(authority: Authority, now: datetime) -> bool:
    """Whether an authority was made while the clock was wrong: verifiers would refuse its SVIDs."""
    return now < authority.not_before - CLOCK_STEP


# --- applied to a set ----------------------------------------------------------------------------


def _one(authorities: AuthoritySet, authority_id: str, event: Event, now: datetime) -> AuthoritySet:
    found = [a for a in authorities.all if a.id == authority_id]
    if not found:
        raise ValueError(f"no authority has the ID {authority_id!r}")
    [authority] = found
    if (authority.state, event) not in _TABLE:
        raise ValueError(
            f"cannot {event} {authority.kind} authority {authority_id}: it is {authority.state};"
            f" {_ADVICE[authority.state, event]}"
        )
    return _each(authorities, lambda a: event if a is authority else None, now)


def _each(
    authorities: AuthoritySet, event_of: Callable[[Authority], Event | None], now: datetime
) -> AuthoritySet:
    """Apply to each authority the event that `event_of` returns."""

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
    """The changed set, with the next sequence if its bundle changed."""
    x509_after = authorities.x509 if x509 is None else x509
    jwt_after = authorities.jwt if jwt is None else jwt
    changed = replace(authorities, x509=x509_after, jwt=jwt_after)
    is_same = [a.id for a in authorities.all] == [a.id for a in changed.all]
    return changed if is_same else replace(changed, sequence=authorities.sequence + 1)
