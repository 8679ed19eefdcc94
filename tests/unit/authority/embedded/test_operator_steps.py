"""The steps of a rotation that an operator takes: prepare, activate, taint, revoke."""

from __future__ import annotations

import asyncio

import pytest

from agent.authority.authority_set import AuthorityKind
from agent.authority.embedded import RotationError
from tests.support.fakes import FakeLog
from tests.unit.authority.embedded.conftest import Open, states


@pytest.mark.parametrize("kind", AuthorityKind)
async def test_an_operator_replaces_an_authority_with_a_stolen_key(
    open_authority: Open, kind: AuthorityKind
) -> None:
    authority = open_authority()
    notified: list[AuthorityKind] = []
    authority.on_change(notified.append)
    [stolen] = [each.id for each in authority.authorities.of(kind)]
    successor = await authority.prepare(kind)
    assert await authority.activate(kind) == successor
    assert authority.trusts(stolen)
    await authority.taint(stolen)
    assert not authority.trusts(stolen)
    assert authority.trusts(successor)
    assert states(authority, kind) == ["tainted", "active"]
    await authority.revoke(stolen)
    assert states(authority, kind) == ["active"]
    assert not authority.trusts(stolen)
    assert notified == [kind] * 3, "prepared, tainted, revoked; activation changes no bundle"
    assert open_authority().bundle.document() == authority.bundle.document()


async def test_a_refused_step_names_a_possible_one(open_authority: Open) -> None:
    authority = open_authority()
    active = authority.authorities.active_jwt.id
    with pytest.raises(RotationError, match="prepare one first"):
        await authority.activate(AuthorityKind.JWT)
    with pytest.raises(RotationError, match="prepare and activate another one first"):
        await authority.taint(active)
    with pytest.raises(RotationError, match="prepare and activate another one, then taint"):
        await authority.revoke(active)
    with pytest.raises(RotationError, match="no authority has the ID 'x'"):
        await authority.taint("x")
    await authority.prepare(AuthorityKind.JWT)
    with pytest.raises(RotationError, match="prepared already"):
        await authority.prepare(AuthorityKind.JWT)


async def test_of_two_simultaneous_preparations_one_is_refused(open_authority: Open) -> None:
    authority = open_authority()
    outcomes = await asyncio.gather(
        authority.prepare(AuthorityKind.X509),
        authority.prepare(AuthorityKind.X509),
        return_exceptions=True,
    )
    assert {type(each) for each in outcomes} == {RotationError, str}
    assert states(authority, AuthorityKind.X509) == ["active", "prepared"]


async def test_each_change_of_state_is_logged(open_authority: Open) -> None:
    lines = FakeLog()
    authority = open_authority(lines=lines)
    former = authority.authorities.active_jwt.id
    successor = await authority.prepare(AuthorityKind.JWT)
    await authority.activate(AuthorityKind.JWT)
    await authority.taint(former)
    await authority.revoke(former)
    assert [(line["authority_id"], line["state"]) for line in lines.of("authority changed")] == [
        (successor, "prepared"),
        (former, "retired"),
        (successor, "active"),
        (former, "tainted"),
        (former, "removed"),
    ]
