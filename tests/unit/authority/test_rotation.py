"""The transitions of authorities, and when each step is due."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.authority.authority_set import (
    AuthorityKind,
    AuthoritySet,
    JwtAuthority,
    State,
    X509Authority,
)
from agent.authority.rotation import (
    Event,
    Step,
    activate,
    expire,
    next_steps,
    prepare,
    revoke,
    taint,
)
from agent.authority.x509_issuer import create_x509_authority
from agent.spiffe.lifetimes import BACKDATE
from tests.vectors.pki.forge import NOW, TD

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
LIFE = 24 * HOUR


@cache
def _x509(start: datetime = NOW, state: State = State.ACTIVE) -> X509Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = create_x509_authority(TD, key, now=start, ttl=LIFE)
    return X509Authority(state=state, since=start, certificate=certificate, key=key)


@cache
def _jwt(
    kid: str = "first",
    start: datetime = NOW,
    state: State = State.ACTIVE,
    life: timedelta = LIFE,
) -> JwtAuthority:
    key = ec.generate_private_key(ec.SECP256R1())
    return JwtAuthority(
        state=state, since=start, kid=kid, key=key, not_before=start, not_after=start + life
    )


FIRST = AuthoritySet(
    trust_domain=TD, sequence=1, longest_svid=LIFE / 6, x509=(_x509(),), jwt=(_jwt(),)
)
PREPARED = prepare(FIRST, _jwt("second", NOW + 12 * HOUR))
SUCCEEDED = activate(PREPARED, AuthorityKind.JWT, NOW + 20 * HOUR)
TAINTED = taint(SUCCEEDED, "first", NOW + 21 * HOUR)


def _states(authorities: AuthoritySet) -> list[tuple[str, State]]:
    return [(a.kid, a.state) for a in authorities.jwt]


def _jwt_steps(authorities: AuthoritySet, now: datetime) -> list[Step]:
    return [step for step in next_steps(authorities, now) if step.kind is AuthorityKind.JWT]


# --- the transitions-------------------------------------------------------------------------------


def test_an_authority_passes_all_states_and_is_removed() -> None:
    assert _states(PREPARED) == [("first", State.ACTIVE), ("second", State.PREPARED)]
    assert _states(SUCCEEDED) == [("first", State.RETIRED), ("second", State.ACTIVE)]
    assert _states(TAINTED) == [("first", State.TAINTED), ("second", State.ACTIVE)]
    for gone in (
        revoke(TAINTED, "first", NOW + 22 * HOUR),
        expire(TAINTED, "first", NOW + 22 * HOUR),
        expire(SUCCEEDED, "first", NOW + 22 * HOUR),
    ):
        assert _states(gone) == [("second", State.ACTIVE)]


def test_since_is_the_time_of_the_last_change_of_state() -> None:
    assert [a.since for a in SUCCEEDED.jwt] == [NOW + 20 * HOUR, NOW + 20 * HOUR]
    assert TAINTED.jwt[0].since == NOW + 21 * HOUR


def test_the_sequence_rises_with_each_change_of_the_bundle_only() -> None:
    gone = expire(TAINTED, "first", NOW + 22 * HOUR)
    sequences = [each.sequence for each in (FIRST, PREPARED, SUCCEEDED, TAINTED, gone)]
    assert sequences == [1, 2, 2, 2, 3]


def test_the_other_kind_stays_unchanged() -> None:
    assert TAINTED.x509 == FIRST.x509
    both = activate(prepare(PREPARED, _x509(NOW + 12 * HOUR)), AuthorityKind.X509, NOW + 20 * HOUR)
    assert _states(both) == _states(PREPARED)
    assert [a.state for a in both.x509] == [State.RETIRED, State.ACTIVE]


def test_a_successor_is_prepared_whatever_its_former_state() -> None:
    assert prepare(FIRST, _x509(NOW + HOUR)).x509[-1].state is State.PREPARED


def test_a_prepared_authority_can_be_tainted_and_revoked() -> None:
    tainted = taint(PREPARED, "second", NOW + 13 * HOUR)
    assert _states(tainted) == [("first", State.ACTIVE), ("second", State.TAINTED)]
    assert _states(revoke(tainted, "second", NOW + 13 * HOUR)) == [("first", State.ACTIVE)]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda: prepare(PREPARED, _jwt("third")), "jwt authority is prepared already"),
        (lambda: prepare(FIRST, replace(_jwt(), since=NOW)), "same key ID"),
        (
            lambda: activate(FIRST, AuthorityKind.JWT, NOW),
            "no jwt authority is prepared: prepare one first",
        ),
        (lambda: activate(PREPARED, AuthorityKind.X509, NOW), "no x509 authority is prepared"),
        (lambda: taint(FIRST, "nobody", NOW), "no authority has the ID 'nobody'"),
        (
            lambda: taint(FIRST, "first", NOW),
            "it is active; prepare and activate another one first",
        ),
        (lambda: taint(TAINTED, "first", NOW), "it is tainted; revoke it"),
        (
            lambda: revoke(FIRST, "first", NOW),
            "it is active; prepare and activate another one, then taint",
        ),
        (lambda: revoke(SUCCEEDED, "first", NOW), "it is retired; taint it first"),
        (lambda: revoke(PREPARED, "second", NOW), "it is prepared; taint it first"),
        (lambda: expire(FIRST, "first", NOW), "cannot expire jwt authority first"),
    ],
)
def test_each_other_transition_is_refused_with_advice(step: object, reason: str) -> None:
    assert callable(step)
    with pytest.raises(ValueError, match=reason):
        step()


# --- when they are due ---------------------------------------------------------------------------


def test_a_successor_is_prepared_at_half_and_signs_in_the_last_sixth() -> None:
    [preparation] = _jwt_steps(FIRST, NOW)
    assert (preparation.event, preparation.at) == (Event.PREPARE, NOW + 12 * HOUR)
    [handover] = _jwt_steps(PREPARED, NOW + 12 * HOUR)
    assert (handover.event, handover.at) == (Event.ACTIVATE, NOW + 20 * HOUR)
    assert handover.authority_id == "second"


def test_the_soonest_step_of_both_kinds_comes_first() -> None:
    # The certificate is backdated, so that half of its lifetime is over earlier.
    assert [(s.kind, s.event) for s in next_steps(FIRST, NOW)] == [
        (AuthorityKind.X509, Event.PREPARE),
        (AuthorityKind.JWT, Event.PREPARE),
    ]
    assert next_steps(FIRST, NOW)[0].at == NOW + 12 * HOUR - BACKDATE / 2


def test_a_late_successor_is_in_the_bundle_for_ten_seconds_before_it_signs() -> None:
    late = NOW + 23 * HOUR
    [handover] = _jwt_steps(prepare(FIRST, _jwt("late", late)), late)
    assert handover.at == late + 10 * SECOND
    short = replace(FIRST, jwt=(_jwt("short", life=12 * SECOND),))
    [handover] = _jwt_steps(prepare(short, _jwt("late", NOW + 11 * SECOND)), NOW + 11 * SECOND)
    assert handover.at == NOW + 10 * SECOND, "while the active one can still sign"


def test_after_the_end_of_the_active_authority_each_step_is_due_at_once() -> None:
    late = NOW + 5 * LIFE
    [preparation] = _jwt_steps(FIRST, late)
    assert preparation.at <= late
    [handover] = _jwt_steps(prepare(FIRST, _jwt("late", late)), late)
    assert handover.at <= late


def test_a_successor_that_has_expired_does_not_become_active() -> None:
    late = NOW + 5 * LIFE
    [step] = _jwt_steps(PREPARED, late)
    assert (step.event, step.authority_id, step.at) == (Event.EXPIRE, "second", late)


@pytest.mark.parametrize(
    ("longest", "since", "leaves"),
    [
        (LIFE / 6, 20 * HOUR, 25 * HOUR),
        (LIFE / 6, 3 * HOUR, 8 * HOUR),
        (HOUR, 20 * HOUR, 22 * HOUR),
        (9 * LIFE, 3 * HOUR, 25 * HOUR),
    ],
    ids=["in its last part", "before its time", "short SVIDs", "SVIDs end with their authority"],
)
def test_a_retired_authority_leaves_an_hour_after_its_last_svid_has_expired(
    longest: timedelta, since: timedelta, leaves: timedelta
) -> None:
    prepared = prepare(replace(FIRST, longest_svid=longest), _jwt("second", NOW))
    succeeded = activate(prepared, AuthorityKind.JWT, NOW + since)
    for authorities in (succeeded, taint(succeeded, "first", NOW + since)):
        step = next(s for s in _jwt_steps(authorities, NOW) if s.event is Event.EXPIRE)
        assert (step.authority_id, step.at) == ("first", NOW + leaves)


def test_an_authority_with_a_short_lifetime_has_a_short_margin() -> None:
    short = replace(FIRST, jwt=(_jwt("short", life=HOUR),), longest_svid=HOUR / 6)
    succeeded = activate(prepare(short, _jwt("second")), AuthorityKind.JWT, NOW + HOUR / 2)
    step = next(s for s in _jwt_steps(succeeded, NOW) if s.event is Event.EXPIRE)
    assert step.at == NOW + HOUR / 2 + HOUR / 6 + HOUR / 6


@pytest.mark.parametrize(("back", "is_due"), [(30 * SECOND, False), (HOUR, True)])
def test_an_authority_from_the_future_is_replaced_at_once(back: timedelta, *, is_due: bool) -> None:
    """A wrong clock made it. A clock that was set back a little replaces nothing."""
    now = NOW - back
    [preparation] = _jwt_steps(FIRST, now)
    assert (preparation.at <= now) == is_due
    [handover] = _jwt_steps(prepare(FIRST, _jwt("right", now)), now)
    assert (handover.at <= now) == is_due
    wrong = prepare(replace(FIRST, jwt=(_jwt("right", now),)), _jwt("wrong", NOW))
    [step] = _jwt_steps(wrong, now)
    assert (step.event is Event.EXPIRE) == is_due
