"""The authority over restarts, damage and the end of its life."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent import keys
from agent.authorities import AuthoritySet, Kind
from agent.authority import FILE, Authority, AuthorityPolicy, RotationError
from agent.issuance import IssuanceError
from agent.jwt_issuance import JwtSvidRequest
from agent.keys import KeyType
from agent.keystore import Keystore, KeystoreError
from agent.spiffe import SpiffeId, TrustDomain
from agent.validation import validate_jwt_svid, validate_x509_svid
from agent.x509_issuance import X509SvidRequest
from tests.support.fakes import START, FakeClock, Lines

TD = TrustDomain("example.org")
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)
POLICY = AuthorityPolicy(trust_domain=TD, key_type=KeyType.EC_P256, ttl=DAY)
WORKLOAD = SpiffeId(TD, "/w")


@pytest.fixture
def keystore(tmp_path: Path) -> Iterator[Keystore]:
    keystore = Keystore(tmp_path / "data")
    yield keystore
    keystore.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Open = Callable[..., Authority]


@pytest.fixture
def open_authority(keystore: Keystore, clock: FakeClock) -> Iterator[Open]:
    opened: list[Authority] = []

    def open_one(policy: AuthorityPolicy = POLICY, lines: Lines | None = None) -> Authority:
        opened.append(Authority.open(policy, keystore, clock, (lines or Lines()).log))
        return opened[-1]

    yield open_one
    for authority in opened:
        authority.close()


def x509_request(ttl: dt.timedelta = HOUR) -> X509SvidRequest:
    key = keys.generate(KeyType.EC_P256)
    return X509SvidRequest(spiffe_id=WORKLOAD, public_key=key.public_key(), ttl=ttl)


def jwt_request() -> JwtSvidRequest:
    return JwtSvidRequest(spiffe_id=WORKLOAD, audience=("a",), ttl=HOUR)


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_what_it_signs_its_bundle_verifies(
    open_authority: Open, clock: FakeClock, key_type: KeyType
) -> None:
    policy = AuthorityPolicy(trust_domain=TD, key_type=key_type, ttl=DAY)
    authority = open_authority(policy)
    assert authority.created
    certificate = authority.sign_x509(x509_request())
    assert validate_x509_svid([certificate], authority.bundle, clock.now()) == WORKLOAD
    token = authority.sign_jwt(jwt_request()).token
    valid = validate_jwt_svid(token, "a", {TD: authority.bundle}, clock.now())
    assert valid.spiffe_id == WORKLOAD


def test_a_restart_finds_the_same_authority(
    open_authority: Open, keystore: Keystore, clock: FakeClock
) -> None:
    first = open_authority()
    certificate = first.sign_x509(x509_request())
    token = first.sign_jwt(jwt_request()).token
    stored = keystore.read(FILE)
    again = open_authority()
    assert not again.created
    assert again.bundle.document() == first.bundle.document()
    assert keystore.read(FILE) == stored
    validate_x509_svid([certificate], again.bundle, clock.now())
    validate_jwt_svid(token, "a", {TD: again.bundle}, clock.now())


def damage(stored: bytes) -> dict[str, bytes]:
    document = json.loads(stored)
    other = json.loads(stored)
    other["x509"][0]["key"] = keys.to_pem(keys.generate(KeyType.EC_P256)).decode()
    none_active = json.loads(stored)
    none_active["jwt"][0]["state"] = "retired"
    return {
        "empty": b"",
        "half": stored[: len(stored) // 2],
        "noise": b"\x00\xff" * 50,
        "another document": b'{"version": 1}',
        "another version": json.dumps({**document, "version": 99}).encode(),
        "a foreign key": json.dumps(other).encode(),
        "no active authority": json.dumps(none_active).encode(),
    }


@pytest.mark.parametrize("kind", damage(b'{"x509": [{}], "jwt": [{}]}'))
def test_a_damaged_file_is_named_and_left_alone(
    open_authority: Open, keystore: Keystore, kind: str
) -> None:
    open_authority()
    stored = keystore.read(FILE)
    assert stored is not None
    broken = damage(stored)[kind]
    keystore.write(FILE, broken)
    with pytest.raises(KeystoreError, match=r"authority\.json cannot be used: .*backup") as caught:
        open_authority()
    assert keystore.read(FILE) == broken
    assert "PRIVATE KEY" not in str(caught.value)


def test_the_data_of_another_trust_domain_is_refused(
    open_authority: Open, keystore: Keystore
) -> None:
    open_authority()
    stored = keystore.read(FILE)
    other = AuthorityPolicy(
        trust_domain=TrustDomain("other.test"), key_type=KeyType.EC_P256, ttl=DAY
    )
    with pytest.raises(KeystoreError, match=r"example\.org"):
        open_authority(other)
    assert keystore.read(FILE) == stored


def states(authority: Authority, kind: Kind) -> list[str]:
    return [each.state for each in authority.authorities.of(kind)]


async def test_a_successor_is_known_long_before_it_signs(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    told: list[Kind] = []
    authority.on_change(told.append)
    clock.set(START + 11 * HOUR)
    await authority.catch_up()
    assert not told
    clock.set(START + 12 * HOUR)
    await authority.catch_up()
    assert sorted(told) == [Kind.JWT, Kind.X509]
    assert authority.bundle.sequence == 3, "one for each kind, each with a sequence of its own"
    for kind in Kind:
        assert states(authority, kind) == ["active", "prepared"]
    old = authority.sign_x509(x509_request())
    clock.set(START + 20 * HOUR)
    known = authority.bundle
    await authority.catch_up()
    new = authority.sign_x509(x509_request())
    assert new.issuer != old.issuer
    assert authority.bundle.document() == known.document()
    assert sorted(told) == [Kind.JWT, Kind.X509], "the bundle is the same"
    validate_x509_svid([old], known, START + 12 * HOUR + HOUR / 2)
    validate_x509_svid([new], known, clock.now())
    token = authority.sign_jwt(jwt_request()).token
    validate_jwt_svid(token, "a", {TD: known}, clock.now())
    assert new.not_valid_after_utc == clock.now() + HOUR


async def test_the_former_one_leaves_when_nothing_it_signed_is_left(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    for hours in (12, 20):
        clock.set(START + hours * HOUR)
        await authority.catch_up()
    clock.set(START + 24 * HOUR + 59 * MINUTE)
    await authority.catch_up()
    assert states(authority, Kind.JWT) == ["retired", "active", "prepared"]
    clock.set(START + 25 * HOUR)
    await authority.catch_up()
    assert states(authority, Kind.JWT) == ["active", "prepared"]
    assert len(authority.bundle.jwt_authorities) == 2


async def test_a_step_is_on_disk_before_anybody_sees_it(
    open_authority: Open, clock: FakeClock, keystore: Keystore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines()
    authority = open_authority(lines=lines)
    before = authority.bundle.document()
    clock.set(START + 13 * HOUR)

    def fail(_name: str, _content: bytes) -> None:
        raise KeystoreError("No space left on device")

    monkeypatch.setattr(keystore, "write", fail)
    await authority.catch_up()
    assert authority.bundle.document() == before
    assert authority.failure == "No space left on device"
    assert lines.of("authority not replaced")
    monkeypatch.undo()
    await authority.catch_up()
    assert authority.failure == ""
    assert authority.bundle.document() != before
    assert open_authority().bundle.document() == authority.bundle.document()


async def test_an_authority_of_a_wrong_clock_is_replaced(
    open_authority: Open, clock: FakeClock
) -> None:
    """First started years ahead, then the clock was set: its SVIDs would verify nowhere."""
    clock.set(START + 365 * DAY)
    open_authority()
    clock.set(START)
    authority = open_authority()
    await authority.catch_up()
    certificate = authority.sign_x509(x509_request())
    assert validate_x509_svid([certificate], authority.bundle, clock.now()) == WORKLOAD


@pytest.mark.parametrize("days", [1, 3, 400])
async def test_after_a_suspend_past_everything_it_signs_again_at_once(
    open_authority: Open, clock: FakeClock, days: int
) -> None:
    authority = open_authority()
    clock.set(START + 12 * HOUR)
    await authority.catch_up()
    clock.set(START + 12 * HOUR + days * DAY)
    with pytest.raises(IssuanceError):
        authority.sign_x509(x509_request())
    with pytest.raises(IssuanceError):
        authority.sign_jwt(jwt_request())
    await authority.catch_up()
    certificate = authority.sign_x509(x509_request())
    validate_x509_svid([certificate], authority.bundle, clock.now())
    authority.sign_jwt(jwt_request())


async def test_the_loop_survives_a_disk_that_is_full_and_says_so(
    open_authority: Open, keystore: Keystore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines()
    authority = open_authority(lines=lines)
    clock.set(START + 13 * HOUR)
    failed: asyncio.Queue[None] = asyncio.Queue()

    def fail(_name: str, _content: bytes) -> None:
        loop.call_soon_threadsafe(failed.put_nowait, None)
        raise OSError("cannot write")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(keystore, "write", fail)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(authority.run())
        for _ in range(3):
            await failed.get()
            await until(lambda: not authority._changing.locked())
            await clock.advance(dt.timedelta(seconds=10))
        running.cancel()
    assert len(lines.of("authority not replaced")) >= 3


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


# --- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
async def test_an_operator_replaces_an_authority_whose_key_was_stolen(
    open_authority: Open, kind: Kind
) -> None:
    authority = open_authority()
    told: list[Kind] = []
    authority.on_change(told.append)
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
    assert told == [kind] * 3, "prepared, tainted, revoked; who signs is no news to verifiers"
    assert open_authority().bundle.document() == authority.bundle.document()


async def test_what_cannot_be_done_says_what_can(open_authority: Open) -> None:
    authority = open_authority()
    active = authority.authorities.active_jwt.id
    with pytest.raises(RotationError, match="prepare one first"):
        await authority.activate(Kind.JWT)
    with pytest.raises(RotationError, match="prepare and activate another one first"):
        await authority.taint(active)
    with pytest.raises(RotationError, match="it still signs"):
        await authority.revoke(active)
    with pytest.raises(RotationError, match="there is no authority 'x'"):
        await authority.taint("x")
    await authority.prepare(Kind.JWT)
    with pytest.raises(RotationError, match="prepared already"):
        await authority.prepare(Kind.JWT)


async def test_two_who_ask_at_the_same_time_do_not_both_get_it(open_authority: Open) -> None:
    authority = open_authority()
    outcomes = await asyncio.gather(
        authority.prepare(Kind.X509), authority.prepare(Kind.X509), return_exceptions=True
    )
    assert {type(each) for each in outcomes} == {RotationError, str}
    assert states(authority, Kind.X509) == ["active", "prepared"]


async def test_every_change_is_logged(open_authority: Open) -> None:
    lines = Lines()
    authority = open_authority(lines=lines)
    former = authority.authorities.active_jwt.id
    successor = await authority.prepare(Kind.JWT)
    await authority.activate(Kind.JWT)
    await authority.taint(former)
    await authority.revoke(former)
    assert [(line["authority"], line["state"]) for line in lines.of("authority changed")] == [
        (successor, "prepared"),
        (former, "retired"),
        (successor, "active"),
        (former, "tainted"),
        (former, "gone"),
    ]


async def test_another_policy_holds_for_new_authorities_and_is_remembered(
    open_authority: Open,
) -> None:
    authority = open_authority()
    assert authority.authorities.longest_svid == DAY / 6
    longer = replace(POLICY, key_type=KeyType.EC_P384, ttl=6 * DAY)
    await authority.adopt(longer)
    assert authority.authorities.longest_svid == DAY
    await authority.prepare(Kind.JWT)
    prepared = authority.authorities.jwt[-1]
    assert prepared.not_after - prepared.not_before == 6 * DAY
    await authority.adopt(POLICY)
    again = open_authority()
    assert again.authorities.longest_svid == DAY, "what lived so long may still be about"
    assert again.bundle.document() == authority.bundle.document()


def test_a_start_with_longer_lives_is_remembered(open_authority: Open, keystore: Keystore) -> None:
    open_authority()
    open_authority(replace(POLICY, ttl=6 * DAY))
    assert open_authority().authorities.longest_svid == DAY
    stored = keystore.read(FILE)
    assert stored is not None
    assert AuthoritySet.parse(stored, TD).longest_svid == DAY


# --- before each response ------------------------------------------------------------------------


async def test_nobody_waits_for_a_step_that_can_wait(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    clock.set(START + 21 * HOUR)
    await authority.be_able_to_sign()
    assert states(authority, Kind.X509) == ["active"]
    clock.set(START + 24 * HOUR - dt.timedelta(seconds=1))
    await authority.be_able_to_sign()
    authority.sign_x509(x509_request())


async def test_a_broken_disk_is_not_tried_again_by_every_caller(
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
        await authority.be_able_to_sign()
    assert len(tried) == 1
    monkeypatch.undo()
    await authority.catch_up()
    await authority.be_able_to_sign()
    authority.sign_x509(x509_request())
