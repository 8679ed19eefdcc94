"""The authority over restarts, damage and the end of its life."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import keys
from agent.authority import FILE, Authority, AuthorityPolicy
from agent.issuance import IssuanceError, JwtSvidRequest, X509SvidRequest
from agent.keys import KeyType
from agent.keystore import Keystore, KeystoreError
from agent.spiffe import SpiffeId, TrustDomain
from agent.validation import validate_jwt_svid, validate_x509_svid
from tests.support.fakes import START, FakeClock, Lines

TD = TrustDomain("example.org")
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
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
def open_authority(keystore: Keystore, clock: FakeClock) -> Open:
    return lambda policy=POLICY: Authority.open(policy, keystore, clock, Lines().log)


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


async def test_a_successor_comes_in_time_and_the_old_one_stays_in_the_bundle(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    told: list[int] = []
    authority.on_change(lambda: told.append(authority.bundle.sequence))
    clock.set(START + 19 * HOUR)
    await authority.replace_due()
    assert not told
    clock.set(START + 20 * HOUR + dt.timedelta(minutes=1))
    old = authority.sign_x509(x509_request())
    old_token = authority.sign_jwt(jwt_request()).token
    await authority.replace_due()
    assert told == [2, 3], "one for each kind, each with a sequence of its own"
    assert len(authority.bundle.x509_authorities) == 2
    new = authority.sign_x509(x509_request())
    assert new.extensions is not None
    for certificate in (old, new):
        validate_x509_svid([certificate], authority.bundle, clock.now())
    for token in (old_token, authority.sign_jwt(jwt_request()).token):
        validate_jwt_svid(token, "a", {TD: authority.bundle}, clock.now())
    assert new.not_valid_after_utc == clock.now() + HOUR


async def test_the_successor_is_on_disk_before_it_signs(
    open_authority: Open, clock: FakeClock, keystore: Keystore, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = open_authority()
    before = authority.bundle.document()
    clock.set(START + 21 * HOUR)

    def fail(_name: str, _content: bytes) -> None:
        raise KeystoreError("No space left on device")

    monkeypatch.setattr(keystore, "write", fail)
    with pytest.raises(KeystoreError):
        await authority.replace_due()
    assert authority.bundle.document() == before
    monkeypatch.undo()
    await authority.replace_due()
    assert open_authority().bundle.document() == authority.bundle.document()


async def test_an_authority_of_a_wrong_clock_is_replaced(
    open_authority: Open, clock: FakeClock
) -> None:
    """First started years ahead, then the clock was set: its SVIDs would verify nowhere."""
    clock.set(START + 365 * DAY)
    open_authority()
    clock.set(START)
    authority = open_authority()
    await authority.replace_due()
    certificate = authority.sign_x509(x509_request())
    assert validate_x509_svid([certificate], authority.bundle, clock.now()) == WORKLOAD


async def test_an_expired_authority_signs_nothing_until_it_is_replaced(
    open_authority: Open, clock: FakeClock
) -> None:
    authority = open_authority()
    clock.set(START + 2 * DAY)
    with pytest.raises(IssuanceError):
        authority.sign_x509(x509_request())
    with pytest.raises(IssuanceError):
        authority.sign_jwt(jwt_request())
    await authority.replace_due()
    certificate = authority.sign_x509(x509_request())
    validate_x509_svid([certificate], authority.bundle, clock.now())


async def test_the_loop_survives_a_disk_that_is_full_and_says_so(
    keystore: Keystore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines()
    authority = Authority.open(POLICY, keystore, clock, lines.log)

    async def fail() -> None:
        raise OSError("cannot write")

    monkeypatch.setattr(authority, "replace_due", fail)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(authority.run())
        await clock.advance(dt.timedelta(seconds=25))
        running.cancel()
    assert len(lines.of("authority not replaced")) == 3
