"""An open stream while its caller, its SVIDs and the authorities change."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from agent.api.workload import Responses, Review, ServingPolicy
from agent.authority.authority_set import AuthorityKind
from agent.errors import AttestationError, NoIdentityError, PeerError
from agent.pb import workloadapi_pb2 as pb
from attestors.api import Selector
from tests.support.fakes import identity, settle
from tests.unit.api.workload.conftest import CALLER, HOUR, Site, bundle_streams


async def is_silent(site: Site, stream: Responses, *, attestations: int) -> bool:
    """Wait for so many further attestations of the caller; whether the stream sends nothing."""
    enough = len(site.asked) + attestations
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_read(stream))
        while len(site.asked) < enough and not reading.done():
            await asyncio.sleep(0.001)
        await settle()
        silent = not reading.done()
        reading.cancel()
    return silent


async def _read(stream: Responses) -> None:
    await anext(stream)


async def test_a_stream_sends_a_renewal(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    first = await anext(stream)
    site.clock.set(site.clock.now() + HOUR / 2)
    site.svids.renew_due()
    second = await anext(stream)
    await stream.aclose()
    assert first != second
    assert not site.svids._watchers


async def test_bundle_streams_send_a_new_authority(site: Site) -> None:
    certificates, keys = bundle_streams(site)
    before = [await anext(certificates), await anext(keys)]
    site.clock.set(site.clock.now() + 21 * HOUR)
    await site.authority.take_due_steps()
    after = [await anext(certificates), await anext(keys)]
    assert before[0] != after[0]
    assert before[1] != after[1]
    await certificates.aclose()
    await keys.aclose()


async def test_a_change_causes_one_attestation_and_an_equal_response_is_not_sent(
    site: Site,
) -> None:
    site.api.policy = ServingPolicy(review=Review(HOUR, lambda: 0.0))
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.streams.wake(lambda _stream: True)
    assert await is_silent(site, stream, attestations=1)
    assert len(site.asked) == 2
    assert len(site.lines.of("svid issued")) == 1


async def test_the_caller_is_attested_before_each_message(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.identities = NoIdentityError("gone")
    site.streams.wake(lambda _stream: True)
    with pytest.raises(NoIdentityError):
        await anext(stream)


async def test_a_stream_retries_soon_while_an_attestor_fails(site: Site) -> None:
    site.api.policy = ServingPolicy(review=Review(HOUR, lambda: 0.0, retry_seconds=0.01))
    site.complete = False
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.complete, site.identities = True, (identity("a"), identity("b"))
    response = await anext(stream)
    assert isinstance(response, pb.X509SVIDResponse)
    assert len(response.svids) == 2
    await stream.aclose()


async def test_a_review_that_fails_ends_the_stream(
    site: Site,
) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.identities = PeerError("it changed")
    with pytest.raises(PeerError):
        await anext(stream)
    assert site.asked == [True, False]


async def test_a_stream_sends_an_identity_that_a_review_finds(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    site.identities = (identity("a"), identity("b"))
    response = await anext(stream)
    await stream.aclose()
    assert isinstance(response, pb.X509SVIDResponse)
    assert len(response.svids) == 2
    assert site.asked == [True, False, True], "attested again before the release"


async def test_a_review_without_a_change_sends_nothing(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    assert await is_silent(site, stream, attestations=3)
    assert len(site.lines.of("svid issued")) == 1


@pytest.mark.parametrize("failing", ["every attestor", "one attestor"])
async def test_a_stream_stays_open_while_attestors_fail(site: Site, failing: str) -> None:
    site.identities = (identity("a"), identity("b"))
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    if failing == "every attestor":
        site.identities = AttestationError("the engine is down")
    else:
        site.complete, site.identities = False, (identity("a"),)
    assert await is_silent(site, stream, attestations=3)


def test_reviews_are_spread_and_never_later_than_the_interval() -> None:
    minute = dt.timedelta(minutes=1)
    assert Review(minute, lambda: -1.0).seconds(complete=True) == pytest.approx(54)
    assert Review(minute, lambda: 1.0).seconds(complete=True) == pytest.approx(60)
    assert Review(minute, lambda: 1.0).seconds(complete=False) == pytest.approx(10)


async def test_a_reload_uses_the_attestation_of_the_last_review(site: Site) -> None:
    stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    [opened] = site.streams.open
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


async def test_a_step_of_the_jwt_authority_does_not_wake_x509_streams(site: Site) -> None:
    x509_stream = site.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(x509_stream)
    asked = len(site.asked)
    await site.authority.prepare(AuthorityKind.JWT)
    [stream] = site.streams.open
    assert not stream.changed.is_set()
    await site.authority.prepare(AuthorityKind.X509)
    assert stream.changed.is_set()
    assert len(site.asked) == asked
    await x509_stream.aclose()
