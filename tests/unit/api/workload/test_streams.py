"""What a stream says while its caller, its SVIDs and the authorities change."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from agent.api import workload
from agent.api.workload import Review, ServingPolicy
from agent.authority.authority_set import AuthorityKind
from agent.errors import AttestationError, NoIdentityError, PeerError
from agent.pb import workloadapi_pb2 as pb
from attestors.api import Selector
from tests.support.fakes import identity
from tests.unit.api.workload.conftest import CALLER, HOUR, Site, bundle_streams


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
    site.streams.wake(lambda _stream: True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(stream)
    assert len(site.asked) == 2
    assert len(site.lines.of("svid issued")) == 1


async def test_before_every_push_the_caller_is_asked_about_again(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.identities = NoIdentityError("gone")
    site.streams.wake(lambda _stream: True)
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
    assert Review(minute, lambda: -1.0).seconds(complete=True) == pytest.approx(54)
    assert Review(minute, lambda: 1.0).seconds(complete=True) == pytest.approx(60)
    assert Review(minute, lambda: 1.0).seconds(complete=False) == pytest.approx(10)


async def test_what_was_found_out_last_is_what_a_reload_goes_by(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    [opened] = site.streams.streams
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


async def test_a_step_of_the_jwt_key_is_no_news_to_streams_of_certificates(site: Site) -> None:
    x509_stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(x509_stream)
    asked = len(site.asked)
    await site.authority.prepare(AuthorityKind.JWT)
    [stream] = site.streams.streams
    assert not stream.changed.is_set()
    await site.authority.prepare(AuthorityKind.X509)
    assert stream.changed.is_set()
    assert len(site.asked) == asked
    await x509_stream.aclose()
