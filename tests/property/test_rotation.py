"""Rotation: in any history, one authority of each kind signs, and the bundle verifies every SVID.

A history is a series of due steps, steps of an operator, clock steps, suspends and restarts.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.authority.authority_set import (
    Authority,
    AuthorityKind,
    AuthoritySet,
    JwtAuthority,
    State,
    X509Authority,
)
from agent.authority.rotation import Event, activate, expire, next_steps, prepare, revoke, taint
from agent.authority.x509_issuer import create_x509_authority
from tests.vectors.pki.forge import NOW, TD

# In production the library only warns, and the certificate is checked all the same.
ODD_SERIAL = "ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning"
HOUR = timedelta(hours=1)
LIFE = 24 * HOUR
LONGEST = LIFE / 6
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(8)]
KIDS = count()
# The most steps of a history. Each can leave one authority of each kind that retires long after the
# present time of the clock, and all of them may leave the bundle at one moment.
LONGEST_HISTORY = 25
MOST_AUTHORITIES = 2 * (LONGEST_HISTORY + 2)
# Each kind's successor also leaves, is prepared, and is activated.
STEPS_AT_ONCE = 2 * MOST_AUTHORITIES


def make(kind: AuthorityKind, now: datetime, state: State = State.PREPARED) -> Authority:
    number = next(KIDS)
    key = KEYS[number % len(KEYS)]
    if kind is AuthorityKind.JWT:
        return JwtAuthority(
            state=state,
            since=now,
            kid=f"key-{number}",
            key=key,
            not_before=now,
            not_after=now + LIFE,
        )
    key = ec.generate_private_key(ec.SECP256R1())  # whose identifier is the authority's
    certificate = create_x509_authority(TD, key, now=now, ttl=LIFE)
    return X509Authority(state=state, since=now, certificate=certificate, key=key)


def first(now: datetime) -> AuthoritySet:
    x509_authority, jwt_authority = (make(kind, now, State.ACTIVE) for kind in AuthorityKind)
    assert isinstance(x509_authority, X509Authority)
    assert isinstance(jwt_authority, JwtAuthority)
    return AuthoritySet(
        trust_domain=TD,
        sequence=1,
        longest_svid=LONGEST,
        x509=(x509_authority,),
        jwt=(jwt_authority,),
    )


STORED = first(NOW).to_json()


class Rotation(RuleBasedStateMachine):
    """Rotation steps as in the daemon, with the expiry of the latest SVID of each authority."""

    @initialize()
    def begin(self) -> None:
        self.now = NOW
        self.set = first(self.now)
        self.sign()

    def sign(self) -> None:
        """Sign with both active authorities: note the latest expiry of an SVID."""
        self.relied_on: dict[str, datetime] = getattr(self, "relied_on", {})
        for authority in (self.set.active_x509, self.set.active_jwt):
            self.relied_on[authority.id] = min(self.now + LONGEST, authority.not_after)

    def become(self, after: AuthoritySet) -> None:
        before, self.set = self.set, after
        is_same_bundle = before.bundle().document() == after.bundle().document()
        assert after.sequence == before.sequence + (0 if is_same_bundle else 1)
        self.sign()

    @rule(minutes=st.integers(1, 60 * 60))
    def wait(self, minutes: int) -> None:
        """Take due steps every ten minutes."""
        end = self.now + timedelta(minutes=minutes)
        while self.now < end:
            self.now += timedelta(minutes=10)
            self.take_due_steps()

    @rule(hours=st.integers(1, 100))
    def sleep(self, hours: int) -> None:
        """Suspend the host."""
        self.now += hours * HOUR
        self.take_due_steps()

    @rule(hours=st.integers(1, 100))
    def set_the_clock_back(self, hours: int) -> None:
        self.now -= hours * HOUR
        self.relied_on = {}  # SVIDs issued later than the new time are not yet valid
        self.take_due_steps()

    def take_due_steps(self) -> None:
        for _ in range(STEPS_AT_ONCE):
            step = next_steps(self.set, self.now)[0]
            if step.at > self.now:
                self.sign()
                return
            if step.event is Event.PREPARE:
                self.become(prepare(self.set, make(step.kind, self.now)))
            elif step.event is Event.ACTIVATE:
                assert self.set.of(step.kind)[-1].id in str(step.authority_id)
                self.become(activate(self.set, step.kind, self.now))
            else:
                self.become(expire(self.set, step.authority_id, self.now))
        raise AssertionError("the due steps never end")

    @rule(kind=st.sampled_from(AuthorityKind))
    def prepare_now(self, kind: AuthorityKind) -> None:
        if State.PREPARED not in [a.state for a in self.set.of(kind)]:
            self.become(prepare(self.set, make(kind, self.now)))

    @rule(kind=st.sampled_from(AuthorityKind))
    def activate_now(self, kind: AuthorityKind) -> None:
        if State.PREPARED in [a.state for a in self.set.of(kind)]:
            self.become(activate(self.set, kind, self.now))
            self.take_due_steps()

    @rule(data=st.data())
    def taint_now(self, data: st.DataObject) -> None:
        former = [a.id for a in self.set.all if a.state in {State.PREPARED, State.RETIRED}]
        if former:
            chosen = data.draw(st.sampled_from(former))
            self.become(taint(self.set, chosen, self.now))
            self.relied_on.pop(chosen, None)
            self.take_due_steps()

    @rule(data=st.data())
    def revoke_now(self, data: st.DataObject) -> None:
        tainted = [a.id for a in self.set.all if a.state is State.TAINTED]
        if tainted:
            self.become(revoke(self.set, data.draw(st.sampled_from(tainted)), self.now))

    @rule()
    def restart(self) -> None:
        self.set = AuthoritySet.parse(self.set.to_json(), TD)
        self.take_due_steps()

    @invariant()
    def exactly_one_authority_of_each_kind_is_active(self) -> None:
        for kind in AuthorityKind:
            states = [a.state for a in self.set.of(kind)]
            assert states.count(State.ACTIVE) == 1
            assert states.count(State.PREPARED) <= 1

    @invariant()
    def the_active_authorities_are_valid(self) -> None:
        for active in (self.set.active_x509, self.set.active_jwt):
            assert active.not_before - timedelta(minutes=1) <= self.now < active.not_after

    @invariant()
    def the_authority_of_each_valid_svid_is_in_the_bundle(self) -> None:
        known = {a.id for a in self.set.all}
        assert known >= {each for each, until in self.relied_on.items() if self.now <= until}

    @invariant()
    def the_bundle_has_a_bound(self) -> None:
        assert len(self.set.all) <= MOST_AUTHORITIES


TestRotation = Rotation.TestCase
TestRotation.settings = settings(
    max_examples=40, stateful_step_count=LONGEST_HISTORY, deadline=None
)


@pytest.mark.filterwarnings(ODD_SERIAL)
@given(st.integers(0, len(STORED) - 1), st.integers(0, 255))
def test_one_damaged_byte_of_the_stored_form_is_an_error_or_harmless(
    index: int, octet: int
) -> None:
    key = AuthoritySet.parse(STORED, TD).active_x509.key.public_key()
    damaged = STORED[:index] + bytes([octet]) + STORED[index + 1 :]
    try:
        authorities = AuthoritySet.parse(damaged, TD)
    except ValueError as error:
        message = str(error)
    else:
        assert authorities.active_x509.key.public_key() == key
        return
    assert "PRIVATE KEY" not in message
