"""Whatever happens in whatever order, exactly one authority of each kind signs."""

from __future__ import annotations

from datetime import timedelta
from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.issuance import create_x509_authority
from agent.rotation import (
    AuthoritySet,
    JwtAuthority,
    Kind,
    State,
    X509Authority,
    due,
    succeed,
)
from tests.vectors.pki.forge import NOW, TD

# In production this is only a warning of the library, and the certificate is judged all the same.
ODD_SERIAL = "ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning"
HOUR = timedelta(hours=1)
KEY = ec.generate_private_key(ec.SECP256R1())
STORED = AuthoritySet(
    trust_domain=TD,
    sequence=1,
    x509=(
        X509Authority(
            state=State.ACTIVE,
            certificate=create_x509_authority(TD, KEY, now=NOW, ttl=24 * HOUR),
            key=KEY,
        ),
    ),
    jwt=(
        JwtAuthority(
            state=State.ACTIVE, kid="k", key=KEY, not_before=NOW, not_after=NOW + 24 * HOUR
        ),
    ),
).to_json()


class Rotation(RuleBasedStateMachine):
    """Successions of both kinds, with lives and waits of any length."""

    @initialize()
    def begin(self) -> None:
        self.kids = count()
        self.now = NOW
        self.known: list[X509Authority | JwtAuthority] = []
        x509_authority, jwt_authority = self._new_x509(24), self._new_jwt(24)
        self.set = AuthoritySet(
            trust_domain=TD, sequence=1, x509=(x509_authority,), jwt=(jwt_authority,)
        )

    def _new_x509(self, hours: int) -> X509Authority:
        certificate = create_x509_authority(TD, KEY, now=self.now, ttl=hours * HOUR)
        made = X509Authority(state=State.ACTIVE, certificate=certificate, key=KEY)
        self.known.append(made)
        return made

    def _new_jwt(self, hours: int) -> JwtAuthority:
        made = JwtAuthority(
            state=State.ACTIVE,
            kid=f"key-{next(self.kids)}",
            key=KEY,
            not_before=self.now,
            not_after=self.now + hours * HOUR,
        )
        self.known.append(made)
        return made

    @rule(hours=st.integers(1, 60))
    def wait(self, hours: int) -> None:
        self.now += hours * HOUR

    @rule(hours=st.integers(1, 48), kind=st.sampled_from(Kind))
    def hand_over(self, hours: int, kind: Kind) -> None:
        successor = self._new_x509(hours) if kind is Kind.X509 else self._new_jwt(hours)
        before, self.set = self.set, succeed(self.set, successor, self.now)
        assert self.set.sequence == before.sequence + 1
        assert self.set.bundle().document() != before.bundle().document()
        active = self.set.active_x509 if kind is Kind.X509 else self.set.active_jwt
        assert active.not_after == successor.not_after
        assert kind not in due(self.set, self.now)

    @rule()
    def restart(self) -> None:
        self.set = AuthoritySet.parse(self.set.to_json(), TD)

    @invariant()
    def one_of_each_kind_is_active(self) -> None:
        for authorities in (self.set.x509, self.set.jwt):
            assert [a.state for a in authorities].count(State.ACTIVE) == 1

    @invariant()
    def whoever_may_still_be_relied_on_is_in_the_bundle(self) -> None:
        bundle = self.set.bundle()
        for authority in self.known:
            if authority.not_after < self.now:
                continue
            if isinstance(authority, X509Authority):
                assert authority.certificate in bundle.x509_authorities
            else:
                assert authority.kid in bundle.jwt_authorities


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@pytest.mark.filterwarnings(ODD_SERIAL)
@given(st.integers(0, len(STORED) - 1), st.integers(0, 255))
def test_any_damage_to_the_stored_form_is_a_value_error_or_harmless(index: int, octet: int) -> None:
    damaged = STORED[:index] + bytes([octet]) + STORED[index + 1 :]
    try:
        authorities = AuthoritySet.parse(damaged, TD)
    except ValueError as error:
        message = str(error)
    else:
        assert authorities.active_x509.key.public_key() == KEY.public_key()
        return
    assert "PRIVATE KEY" not in message
