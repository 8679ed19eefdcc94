"""The steps of a rotation that come due: prepare, activate, expire."""

from __future__ import annotations

import asyncio
import datetime as dt
from functools import partial

import pytest

from agent.authority.authority_set import AuthorityKind
from agent.authority.issuance import IssuanceError
from agent.authority.keystore import Keystore, KeystoreError
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.spiffe.x509_rules import validate_x509_svid
from tests.support.fakes import START, FakeClock, FakeLog
from tests.unit.authority.embedded.conftest import (
    DAY,
    HOUR,
    MINUTE,
    TD,
    WORKLOAD,
    Open,
    jwt_request,
    states,
    until,
    x509_request,
)


async def test_a_successor_is_in_the_bundle_long_before_it_signs(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    notified: list[AuthorityKind] = []
    authority.on_change(notified.append)
    clock.set(START + 11 * HOUR)
    await authority.take_due_steps()
    assert not notified
    clock.set(START + 12 * HOUR)
    await authority.take_due_steps()
    assert sorted(notified) == [AuthorityKind.JWT, AuthorityKind.X509]
    assert authority.bundle.sequence == 3, "one step for each kind, each with its own sequence"
    for kind in AuthorityKind:
        assert states(authority, kind) == ["active", "prepared"]
    old = authority.sign_x509(x509_request())
    clock.set(START + 20 * HOUR)
    known = authority.bundle
    await authority.take_due_steps()
    new = authority.sign_x509(x509_request())
    assert new.issuer != old.issuer
    assert authority.bundle.document() == known.document()
    assert sorted(notified) == [AuthorityKind.JWT, AuthorityKind.X509], "the bundle is the same"
    validate_x509_svid([old], known, START + 12 * HOUR + HOUR / 2)
    validate_x509_svid([new], known, clock.now())
    token = authority.sign_jwt(jwt_request()).token
    validate_jwt_svid(token, "a", {TD: known}, clock.now())
    assert new.not_valid_after_utc == clock.now() + HOUR


async def test_a_retired_authority_leaves_the_bundle_after_its_last_svid(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    for hours in (12, 20):
        clock.set(START + hours * HOUR)
        await authority.take_due_steps()
    clock.set(START + 24 * HOUR + 59 * MINUTE)
    await authority.take_due_steps()
    assert states(authority, AuthorityKind.JWT) == ["retired", "active", "prepared"]
    clock.set(START + 25 * HOUR)
    await authority.take_due_steps()
    assert states(authority, AuthorityKind.JWT) == ["active", "prepared"]
    assert len(authority.bundle.jwt_authorities) == 2


async def test_a_step_is_on_disk_before_it_takes_effect(
    open_authority: Open, clock: FakeClock, keystore: Keystore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = FakeLog()
    authority = open_authority(lines=lines)
    before = authority.bundle.document()
    clock.set(START + 13 * HOUR)

    def fail(_name: str, _content: bytes) -> None:
        raise KeystoreError("No space left on device")

    monkeypatch.setattr(keystore, "write", fail)
    await authority.take_due_steps()
    assert authority.bundle.document() == before
    assert authority.failure == "No space left on device"
    assert lines.of("authority step failed")
    monkeypatch.undo()
    await authority.take_due_steps()
    assert authority.failure == ""
    assert authority.bundle.document() != before
    assert open_authority().bundle.document() == authority.bundle.document()


async def test_an_authority_made_by_a_wrong_clock_is_replaced(
    open_authority: Open, clock: FakeClock
) -> None:
    """The first start was years ahead, then the clock was corrected: no verifier would accept."""
    clock.set(START + 365 * DAY)
    open_authority()
    clock.set(START)
    authority = open_authority()
    await authority.take_due_steps()
    certificate = authority.sign_x509(x509_request())
    assert validate_x509_svid([certificate], authority.bundle, clock.now()) == WORKLOAD


@pytest.mark.parametrize("days", [1, 3, 400])
async def test_after_a_suspend_past_every_expiry_due_steps_restore_signing(
    open_authority: Open, clock: FakeClock, days: int
) -> None:
    authority = open_authority()
    clock.set(START + 12 * HOUR)
    await authority.take_due_steps()
    clock.set(START + 12 * HOUR + days * DAY)
    with pytest.raises(IssuanceError):
        authority.sign_x509(x509_request())
    with pytest.raises(IssuanceError):
        authority.sign_jwt(jwt_request())
    await authority.take_due_steps()
    certificate = authority.sign_x509(x509_request())
    validate_x509_svid([certificate], authority.bundle, clock.now())
    authority.sign_jwt(jwt_request())


async def test_the_loop_survives_a_full_disk_and_logs_it(
    open_authority: Open, keystore: Keystore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = FakeLog()
    authority = open_authority(lines=lines)
    clock.set(START + 13 * HOUR)
    failed: asyncio.Queue[None] = asyncio.Queue()

    def fail(_name: str, _content: bytes) -> None:
        loop.call_soon_threadsafe(failed.put_nowait, None)
        raise OSError("cannot write")

    def has_failed(times: int) -> bool:
        return len(lines.of("authority step failed")) == times

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(keystore, "write", fail)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(authority.run())
        for failures in range(3):
            await failed.get()
            await until(partial(has_failed, failures + 1))
            await clock.advance(dt.timedelta(seconds=10))
        running.cancel()
    assert len(lines.of("authority step failed")) >= 3


async def test_a_call_takes_no_step_while_the_active_authority_signs(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    clock.set(START + 21 * HOUR)
    await authority.ensure_can_sign()
    assert states(authority, AuthorityKind.X509) == ["active"]
    clock.set(START + 24 * HOUR - dt.timedelta(seconds=1))
    await authority.ensure_can_sign()
    authority.sign_x509(x509_request())


async def test_after_a_failed_step_calls_do_not_try_it_again(
    open_authority: Open, clock: FakeClock, keystore: Keystore, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = open_authority()
    tried: list[str] = []

    def fail(name: str, _content: bytes) -> None:
        tried.append(name)
        raise KeystoreError("No space left on device")

    monkeypatch.setattr(keystore, "write", fail)
    clock.set(START + 30 * HOUR)
    for _ in range(5):
        await authority.ensure_can_sign()
    assert len(tried) == 1
    monkeypatch.undo()
    await authority.take_due_steps()
    await authority.ensure_can_sign()
    authority.sign_x509(x509_request())


async def test_a_failure_ends_when_an_operator_takes_the_failed_step(
    open_authority: Open, clock: FakeClock, keystore: Keystore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str, _content: bytes) -> None:
        raise KeystoreError("No space left on device")

    authority = open_authority()
    clock.set(START + 13 * HOUR)
    monkeypatch.setattr(keystore, "write", fail)
    await authority.take_due_steps()
    monkeypatch.undo()
    for kind in AuthorityKind:
        assert authority.failure
        await authority.prepare(kind)
    await authority.take_due_steps()
    assert not authority.failure
