"""From prepared to gone: what may follow what, and when it does."""

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
    next_steps,
    prepare,
    revoke,
    taint,
    without,
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


# --- the steps -----------------------------------------------------------------------------------


def test_the_whole_way() -> None:
    assert _states(PREPARED) == [("first", State.ACTIVE), ("second", State.PREPARED)]
    assert _states(SUCCEEDED) == [("first", State.RETIRED), ("second", State.ACTIVE)]
    assert _states(TAINTED) == [("first", State.TAINTED), ("second", State.ACTIVE)]
    for gone in (
        revoke(TAINTED, "first", NOW + 22 * HOUR),
        without(TAINTED, "first", NOW + 22 * HOUR),
        without(SUCCEEDED, "first", NOW + 22 * HOUR),
    ):
        assert _states(gone) == [("second", State.ACTIVE)]


def test_each_state_knows_since_when() -> None:
    assert [a.since for a in SUCCEEDED.jwt] == [NOW + 20 * HOUR, NOW + 20 * HOUR]
    assert TAINTED.jwt[0].since == NOW + 21 * HOUR


def test_the_sequence_goes_up_with_every_bundle_and_only_then() -> None:
    gone = without(TAINTED, "first", NOW + 22 * HOUR)
    sequences = [each.sequence for each in (FIRST, PREPARED, SUCCEEDED, TAINTED, gone)]
    assert sequences == [1, 2, 2, 2, 3]


def test_the_other_kind_is_not_touched() -> None:
    assert TAINTED.x509 == FIRST.x509
    both = activate(prepare(PREPARED, _x509(NOW + 12 * HOUR)), AuthorityKind.X509, NOW + 20 * HOUR)
    assert _states(both) == _states(PREPARED)
    assert [a.state for a in both.x509] == [State.RETIRED, State.ACTIVE]


def test_what_is_prepared_is_that_whatever_it_was() -> None:
    assert prepare(FIRST, _x509(NOW + HOUR)).x509[-1].state is State.PREPARED


def test_one_that_was_never_active_can_be_tainted_and_revoked() -> None:
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
        (lambda: taint(FIRST, "nobody", NOW), "no authority 'nobody'"),
        (lambda: taint(FIRST, "first", NOW), "which is active: it still signs: prepare"),
        (lambda: taint(TAINTED, "first", NOW), "tainted already"),
        (lambda: revoke(FIRST, "first", NOW), "which is active: it still signs"),
        (lambda: revoke(SUCCEEDED, "first", NOW), "which is retired: taint it first"),
        (lambda: revoke(PREPARED, "second", NOW), "which is prepared: taint it first"),
        (lambda: without(FIRST, "first", NOW), "cannot expire jwt authority first"),
    ],
)
def test_no_other_way_is_open(step: object, reason: str) -> None:
    assert callable(step)
    with pytest.raises(ValueError, match=reason):
        step()


# --- when they come ------------------------------------------------------------------------------


def test_a_successor_is_prepared_at_half_of_life_and_signs_with_a_sixth_left() -> None:
    [preparation] = _jwt_steps(FIRST, NOW)
    assert (preparation.event, preparation.at) == (Event.PREPARE, NOW + 12 * HOUR)
    [handover] = _jwt_steps(PREPARED, NOW + 12 * HOUR)
    assert (handover.event, handover.at) == (Event.ACTIVATE, NOW + 20 * HOUR)
    assert handover.authority_id == "second"


def test_the_soonest_step_of_all_comes_first() -> None:
    # The certificate was backdated, so that its half is over a little earlier.
    assert [(s.kind, s.event) for s in next_steps(FIRST, NOW)] == [
        (AuthorityKind.X509, Event.PREPARE),
        (AuthorityKind.JWT, Event.PREPARE),
    ]
    assert next_steps(FIRST, NOW)[0].at == NOW + 12 * HOUR - BACKDATE / 2


def test_a_late_successor_is_in_the_bundle_for_a_moment_before_it_signs() -> None:
    late = NOW + 23 * HOUR
    [handover] = _jwt_steps(prepare(FIRST, _jwt("late", late)), late)
    assert handover.at == late + 10 * SECOND
    short = replace(FIRST, jwt=(_jwt("short", life=12 * SECOND),))
    [handover] = _jwt_steps(prepare(short, _jwt("late", NOW + 11 * SECOND)), NOW + 11 * SECOND)
    assert handover.at == NOW + 10 * SECOND, "while the active one can still sign"


def test_nobody_waits_for_a_successor_when_the_active_one_has_ended() -> None:
    late = NOW + 5 * LIFE
    [preparation] = _jwt_steps(FIRST, late)
    assert preparation.at <= late
    [handover] = _jwt_steps(prepare(FIRST, _jwt("late", late)), late)
    assert handover.at <= late


def test_a_successor_that_has_ended_does_not_become_active() -> None:
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
def test_a_retired_one_leaves_when_its_last_svid_has_expired_and_an_hour_later(
    longest: timedelta, since: timedelta, leaves: timedelta
) -> None:
    prepared = prepare(replace(FIRST, longest_svid=longest), _jwt("second", NOW))
    succeeded = activate(prepared, AuthorityKind.JWT, NOW + since)
    for authorities in (succeeded, taint(succeeded, "first", NOW + since)):
        step = next(s for s in _jwt_steps(authorities, NOW) if s.event is Event.EXPIRE)
        assert (step.authority_id, step.at) == ("first", NOW + leaves)


def test_one_with_a_short_life_has_a_short_margin() -> None:
    short = replace(FIRST, jwt=(_jwt("short", life=HOUR),), longest_svid=HOUR / 6)
    succeeded = activate(prepare(short, _jwt("second")), AuthorityKind.JWT, NOW + HOUR / 2)
    step = next(s for s in _jwt_steps(succeeded, NOW) if s.event is Event.EXPIRE)
    assert step.at == NOW + HOUR / 2 + HOUR / 6 + HOUR / 6


@pytest.mark.parametrize(("back", "is_due"), [(30 * SECOND, False), (HOUR, True)])
def test_what_a_wrong_clock_made_is_replaced_at_once(back: timedelta, *, is_due: bool) -> None:
    """Made in what is now the future; a clock that was set back a little means nothing."""
    now = NOW - back
    [preparation] = _jwt_steps(FIRST, now)
    assert (preparation.at <= now) == is_due
    [handover] = _jwt_steps(prepare(FIRST, _jwt("right", now)), now)
    assert (handover.at <= now) == is_due
    wrong = prepare(replace(FIRST, jwt=(_jwt("right", now),)), _jwt("wrong", NOW))
    [step] = _jwt_steps(wrong, now)
    assert (step.event is Event.EXPIRE) == is_due
