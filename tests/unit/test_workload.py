"""The methods of the Workload API for a caller whose entitlement the test decides."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jwt
import pytest
from cryptography import x509

from agent.api import workload
from agent.api.workload import Issuers, Review, ServingPolicy, WorkloadApi
from agent.attestation import Attestation, Report
from agent.authorities import Kind
from agent.authority import Authority, AuthorityPolicy
from agent.entitlement import Entitlement
from agent.errors import (
    AttestationError,
    AuthorityError,
    NoIdentityError,
    PeerError,
    RequestError,
    VouchdError,
)
from agent.identities import Identity
from agent.jwt_svids import JwtSvids
from agent.keys import KeyType
from agent.keystore import Keystore
from agent.pb import workloadapi_pb2 as pb
from agent.peer import Caller
from agent.plain import as_plain
from agent.roster import Roster
from agent.spiffe import TrustDomain
from agent.svids import Svids
from attestors.api import Selector
from tests.support.fakes import FakeClock, Lines, identity

TD = TrustDomain("example.org")


class Somebody(SimpleNamespace):
    """As much of a caller as the API looks at."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


CALLER = cast(
    "Caller",
    Somebody(credentials=SimpleNamespace(pid=1, uid=2), process=SimpleNamespace(inode=7)),
)
HOUR = dt.timedelta(hours=1)


def hinted(name: str, hint: str = "") -> Identity:
    return identity(name, hint=hint)


class Site:
    """The API with real SVIDs and a real authority, and a caller who may have `entries`."""

    def __init__(self, keystore: Keystore, *, open_verifiers: bool = False) -> None:
        self.identities: tuple[Identity, ...] | VouchdError = (identity("a"),)
        self.complete = True
        self.asked: list[bool] = []
        self.selectors: frozenset[Selector] = frozenset()
        self.clock = FakeClock()
        self.lines = Lines()
        policy = AuthorityPolicy(
            trust_domain=TD, key_type=KeyType.EC_P256, ttl=dt.timedelta(days=1)
        )
        self.authority = Authority.open(policy, keystore, self.clock, self.lines.log)
        self.svids = Svids(self.authority, self.clock, HOUR, lambda: 0.0, self.lines.log)
        self.roster = Roster(self.clock)
        self.authority.on_change(lambda kind: self.roster.wake(lambda s: s.kind is kind))
        self.api = WorkloadApi(
            entitlements=cast("Any", self),
            issuers=Issuers(
                authority=self.authority,
                x509=self.svids,
                jwt=JwtSvids(self.authority, self.clock, HOUR, self.lines.log),
            ),
            roster=self.roster,
            clock=self.clock,
            policy=ServingPolicy(
                review=Review(dt.timedelta(milliseconds=10), lambda: 0.0),
                allow_unauthenticated_verifiers=open_verifiers,
            ),
            note_issued=self.lines.audit().issued,
            log=self.lines.log,
        )

    async def of(self, caller: Caller, *, releasing: bool = True) -> Entitlement:
        assert caller is CALLER
        self.asked.append(releasing)
        if isinstance(self.identities, VouchdError):
            raise self.identities
        failed = () if self.complete else (Report(attestor="fake", failure="it is down"),)
        known = Attestation(selectors=self.selectors, reports=failed)
        return Entitlement(identities=self.identities, attestation=known)


@pytest.fixture
def keystore(tmp_path: Path) -> Iterator[Keystore]:
    keystore = Keystore(tmp_path / "data")
    yield keystore
    keystore.close()


@pytest.fixture
def site(keystore: Keystore) -> Iterator[Site]:
    site = Site(keystore)
    yield site
    site.authority.close()


async def first_x509(site: Site) -> pb.X509SVIDResponse:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    response = await anext(stream)
    await stream.aclose()
    assert isinstance(response, pb.X509SVIDResponse)
    return response


async def test_all_who_have_the_same_svids_get_one_response_which_goes_with_its_keys(
    site: Site,
) -> None:
    first = await first_x509(site)
    assert await first_x509(site) is first
    await site.clock.advance(HOUR)
    renewed = await first_x509(site)
    assert renewed.svids[0].x509_svid_key != first.svids[0].x509_svid_key
    gc.collect()
    assert sys.getrefcount(first) == 2, "ours, and that of the call"


def jwt_request(*audience: str, spiffe_id: str = "") -> pb.JWTSVIDRequest:
    return pb.JWTSVIDRequest(audience=audience or ["a"], spiffe_id=spiffe_id)


async def test_all_identities_in_the_order_of_the_entries(site: Site) -> None:
    site.identities = (identity("c"), identity("a"), identity("b"))
    ids = ["spiffe://example.org/c", "spiffe://example.org/a", "spiffe://example.org/b"]
    assert [svid.spiffe_id for svid in (await first_x509(site)).svids] == ids
    tokens = await site.api.fetch_jwt_svid(CALLER, jwt_request())
    assert [svid.spiffe_id for svid in tokens.svids] == ids


async def test_of_several_with_one_hint_the_first_keeps_it(site: Site) -> None:
    site.identities = (
        hinted("a", "x"),
        hinted("b", "x"),
        hinted("c", "y"),
        identity("d"),
        identity("e"),
    )
    hints = ["x", "", "y", "", ""]
    assert [svid.hint for svid in (await first_x509(site)).svids] == hints
    tokens = await site.api.fetch_jwt_svid(CALLER, jwt_request())
    assert [svid.hint for svid in tokens.svids] == hints


async def test_one_identity_by_name(site: Site) -> None:
    site.identities = (identity("a"), identity("b"))
    request = jwt_request(spiffe_id="spiffe://example.org/b")
    [svid] = (await site.api.fetch_jwt_svid(CALLER, request)).svids
    assert svid.spiffe_id == "spiffe://example.org/b"


async def test_one_who_asks_for_the_identity_of_another_gets_none(site: Site) -> None:
    with pytest.raises(NoIdentityError):
        await site.api.fetch_jwt_svid(CALLER, jwt_request(spiffe_id="spiffe://example.org/z"))


@pytest.mark.parametrize(
    "request_",
    [
        pb.JWTSVIDRequest(),
        jwt_request(""),
        jwt_request("a", " "),
        jwt_request(*map(str, range(33))),
        jwt_request("x" * 4097),
        jwt_request(spiffe_id="http://example.org/b"),
        jwt_request(spiffe_id="spiffe://example.org"),
    ],
)
async def test_what_is_malformed_is_said_before_anybody_is_attested(
    site: Site, request_: pb.JWTSVIDRequest
) -> None:
    site.identities = AssertionError("attested")  # type: ignore[assignment]
    with pytest.raises(RequestError):
        await site.api.fetch_jwt_svid(CALLER, request_)


@pytest.mark.parametrize(
    "request_",
    [pb.ValidateJWTSVIDRequest(audience="a"), pb.ValidateJWTSVIDRequest(svid="x.y.z")],
)
async def test_validation_wants_both_fields(
    site: Site, request_: pb.ValidateJWTSVIDRequest
) -> None:
    with pytest.raises(RequestError, match="must be specified"):
        await site.api.validate_jwt_svid(CALLER, request_)


async def test_an_own_token_is_valid_and_its_claims_are_told(site: Site) -> None:
    token = (await site.api.fetch_jwt_svid(CALLER, jwt_request("a", "b"))).svids[0].svid
    request = pb.ValidateJWTSVIDRequest(audience="b", svid=token)
    valid = await site.api.validate_jwt_svid(CALLER, request)
    assert valid.spiffe_id == "spiffe://example.org/a"
    assert list(cast("Any", valid.claims["aud"])) == ["a", "b"]
    assert valid.claims["sub"] == "spiffe://example.org/a"
    assert valid.claims["exp"] == int((site.clock.now() + HOUR).timestamp())


async def test_an_expired_token_is_not(site: Site) -> None:
    token = (await site.api.fetch_jwt_svid(CALLER, jwt_request())).svids[0].svid
    site.clock.set(site.clock.now() + HOUR + dt.timedelta(minutes=1))
    with pytest.raises(RequestError, match="expired"):
        await site.api.validate_jwt_svid(
            CALLER, pb.ValidateJWTSVIDRequest(audience="a", svid=token)
        )


async def test_an_entry_that_cannot_be_served_does_not_hold_up_the_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.identities = (identity("a"), identity("b"))
    sign = site.authority.sign_x509

    def sign_some(request: Any) -> Any:
        if request.spiffe_id.path == "/a":
            raise AuthorityError("not this one")
        return sign(request)

    monkeypatch.setattr(site.authority, "sign_x509", sign_some)
    [svid] = (await first_x509(site)).svids
    assert svid.spiffe_id == "spiffe://example.org/b"
    assert site.lines.of("svid not made")[0]["entry"] == "a"
    site.identities = (identity("a"),)
    with pytest.raises(AuthorityError, match="not this one"):
        await first_x509(site)


async def test_a_renewal_is_pushed(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    first = await anext(stream)
    site.clock.set(site.clock.now() + HOUR / 2)
    site.svids.renew_due()
    second = await anext(stream)
    await stream.aclose()
    assert first != second
    assert not site.svids._watchers


async def test_a_new_authority_is_pushed_to_those_who_watch_bundles(site: Site) -> None:
    certificates, keys = bundle_streams(site)
    before = [await anext(certificates), await anext(keys)]
    site.clock.set(site.clock.now() + 21 * HOUR)
    await site.authority.catch_up()
    after = [await anext(certificates), await anext(keys)]
    assert before[0] != after[0]
    assert before[1] != after[1]
    await certificates.aclose()
    await keys.aclose()


async def test_a_change_is_looked_at_once_and_an_equal_response_is_not_sent_again(
    site: Site,
) -> None:
    site.api.policy = ServingPolicy(review=Review(HOUR, lambda: 0.0))
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.roster.wake(lambda _stream: True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(stream)
    assert len(site.asked) == 2
    assert len(site.lines.of("svid issued")) == 1


async def test_every_svid_of_every_message_is_audited(site: Site) -> None:
    site.identities = (identity("a"), identity("b"))
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    first = cast("pb.X509SVIDResponse", await anext(stream))
    site.identities = (identity("b"), identity("c"))
    second = cast("pb.X509SVIDResponse", await anext(stream))
    await stream.aclose()
    tokens = (await site.api.fetch_jwt_svid(CALLER, jwt_request("x", "y"))).svids
    handed_out = [
        x509.load_der_x509_certificate(svid.x509_svid)
        for response in (first, second)
        for svid in response.svids
    ]
    lines = site.lines.of("svid issued")
    assert [(line["serial"], line["expires_at"]) for line in lines[:4]] == [
        (f"{leaf.serial_number:x}", as_plain(leaf.not_valid_after_utc)) for leaf in handed_out
    ]
    assert [line["entry_id"] for line in lines] == ["a", "b", "b", "c", "b", "c"]
    assert [(line["kid"], line["audience"]) for line in lines[4:]] == [
        (jwt.get_unverified_header(token.svid)["kid"], ["x", "y"]) for token in tokens
    ]
    assert {line["kind"] for line in lines[4:]} == {"jwt-svid"}


async def test_what_could_not_be_made_is_not_said_to_be_issued(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.identities = (identity("a"), identity("b"))
    sign = site.authority.sign_x509

    def sign_some(request: Any) -> Any:
        if request.spiffe_id.path == "/a":
            raise AuthorityError("not this one")
        return sign(request)

    monkeypatch.setattr(site.authority, "sign_x509", sign_some)
    await first_x509(site)
    assert [line["entry_id"] for line in site.lines.of("svid issued")] == ["b"]
    [served] = site.roster.served(CALLER)
    assert [each.entry_id for each in served.identities] == ["b"]


async def test_before_every_push_the_caller_is_asked_about_again(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.identities = NoIdentityError("gone")
    site.roster.wake(lambda _stream: True)
    with pytest.raises(NoIdentityError):
        await anext(stream)


async def test_while_an_attestor_fails_a_stream_asks_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "RETRY_SECONDS", 0.01)
    site.complete = False
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.complete, site.identities = True, (identity("a"), identity("b"))
    response = await anext(stream)
    assert isinstance(response, pb.X509SVIDResponse)
    assert len(response.svids) == 2
    await stream.aclose()


async def test_an_identity_that_is_lost_ends_the_stream_though_nothing_is_pushed(
    site: Site,
) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.identities = PeerError("it changed")
    with pytest.raises(PeerError):
        await anext(stream)
    assert site.asked == [True, False]


async def test_one_that_is_gained_is_pushed(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.identities = (identity("a"), identity("b"))
    response = await anext(stream)
    await stream.aclose()
    assert isinstance(response, pb.X509SVIDResponse)
    assert len(response.svids) == 2
    assert site.asked == [True, False, True], "what is released is asked for anew"


async def test_a_look_that_changes_nothing_says_nothing(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(stream)
    assert len(site.asked) > 2
    assert len(site.lines.of("svid issued")) == 1


@pytest.mark.parametrize("failing", ["everything", "a part"])
async def test_while_nobody_knows_a_stream_keeps_what_it_has(
    site: Site, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(workload, "RETRY_SECONDS", 0.01)
    site.identities = (identity("a"), identity("b"))
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    if failing == "everything":
        site.identities = AttestationError("the engine is down")
    else:
        site.complete, site.identities = False, (identity("a"),)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(stream)


def test_reviews_are_spread_and_never_late() -> None:
    minute = dt.timedelta(minutes=1)
    assert Review(minute, lambda: -1.0).seconds(complete=True) == pytest.approx(48)
    assert Review(minute, lambda: 1.0).seconds(complete=True) == pytest.approx(60)
    assert Review(minute, lambda: 1.0).seconds(complete=False) == pytest.approx(10)


def bundle_streams(site: Site) -> list[AsyncGenerator[Any, None]]:
    return [
        site.api.fetch_x509_bundles(CALLER, pb.X509BundlesRequest()),
        site.api.fetch_jwt_bundles(CALLER, pb.JWTBundlesRequest()),
    ]


async def test_bundles_are_for_those_with_an_identity(site: Site) -> None:
    site.identities = NoIdentityError("none")
    for stream in bundle_streams(site):
        with pytest.raises(NoIdentityError):
            await anext(stream)
    with pytest.raises(NoIdentityError):
        await site.api.validate_jwt_svid(
            CALLER, pb.ValidateJWTSVIDRequest(audience="a", svid="x.y.z")
        )


async def test_unless_the_operator_lets_everybody_verify(keystore: Keystore) -> None:
    site = Site(keystore, open_verifiers=True)
    token = (await site.api.fetch_jwt_svid(CALLER, jwt_request())).svids[0].svid
    site.identities = NoIdentityError("none")
    for stream in bundle_streams(site):
        response = await anext(stream)
        assert list(response.bundles) == ["spiffe://example.org"]
        await stream.aclose()
    request = pb.ValidateJWTSVIDRequest(audience="a", svid=token)
    assert (await site.api.validate_jwt_svid(CALLER, request)).spiffe_id
    with pytest.raises(NoIdentityError):
        await first_x509(site)
    site.authority.close()


async def test_wit_is_not_served(site: Site) -> None:
    with pytest.raises(VouchdError, match="WIT"):
        site.api.fetch_wit(CALLER, pb.WITSVIDRequest())


async def test_what_was_found_out_last_is_what_a_reload_goes_by(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    [opened] = site.roster.streams
    site.selectors = frozenset({Selector("unix", "uid:1")})
    asked = len(site.asked)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(anext(stream))
        while len(site.asked) < asked + 2:
            await asyncio.sleep(0.01)
        assert opened.entitlement is not None
        assert opened.entitlement.attestation is not None
        assert opened.entitlement.attestation.selectors == site.selectors
        reading.cancel()
    await stream.aclose()


async def test_after_a_suspend_past_everything_the_first_answer_is_valid(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    await stream.aclose()
    site.clock.set(site.clock.now() + 100 * HOUR)
    [svid] = (await first_x509(site)).svids
    leaf = x509.load_der_x509_certificate(svid.x509_svid)
    assert leaf.not_valid_before_utc <= site.clock.now() < leaf.not_valid_after_utc
    token = (await site.api.fetch_jwt_svid(CALLER, jwt_request())).svids[0].svid
    request = pb.ValidateJWTSVIDRequest(audience="a", svid=token)
    assert (await site.api.validate_jwt_svid(CALLER, request)).spiffe_id


async def test_a_step_of_the_jwt_key_is_no_news_to_streams_of_certificates(site: Site) -> None:
    x509_stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(x509_stream)
    asked = len(site.asked)
    await site.authority.prepare(Kind.JWT)
    [stream] = site.roster.streams
    assert not stream.changed.is_set()
    await site.authority.prepare(Kind.X509)
    assert stream.changed.is_set()
    assert len(site.asked) == asked
    await x509_stream.aclose()
