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
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import identity, settle
from tests.unit.api.workload.conftest import CALLER, HOUR, ServedApi, bundle_streams, x509


async def is_silent(served: ServedApi, stream: Responses, *, attestations: int) -> bool:
    """Wait for so many further attestations of the caller; whether the stream sends nothing."""
    enough = len(served.asked) + attestations
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_read(stream))
        while len(served.asked) < enough and not reading.done():
            await asyncio.sleep(0.001)
        await settle()
        silent = not reading.done()
        reading.cancel()
    return silent


async def _read(stream: Responses) -> None:
    await anext(stream)


async def test_a_stream_sends_a_renewal(served: ServedApi) -> None:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    first = await anext(stream)
    served.clock.set(served.clock.now() + HOUR / 2)
    served.svids.renew_due()
    second = await anext(stream)
    await stream.aclose()
    assert first != second
    assert not served.svids._watchers


async def test_bundle_streams_send_a_new_authority(served: ServedApi) -> None:
    certificates, keys = bundle_streams(served)
    before = [await anext(certificates), await anext(keys)]
    served.clock.set(served.clock.now() + 21 * HOUR)
    await served.authority.take_due_steps()
    after = [await anext(certificates), await anext(keys)]
    assert before[0] != after[0]
    assert before[1] != after[1]
    await certificates.aclose()
    await keys.aclose()


async def test_a_change_causes_one_attestation_and_an_equal_response_is_not_sent(
    served: ServedApi,
) -> None:
    served.api.policy = ServingPolicy(review=Review(HOUR, lambda: 0.0))
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    served.streams.wake(lambda _stream: True)
    assert await is_silent(served, stream, attestations=1)
    assert len(served.asked) == 2
    assert len(served.lines.of("svid issued")) == 1


async def test_the_caller_is_attested_before_each_message(served: ServedApi) -> None:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    served.identities = NoIdentityError("gone")
    served.streams.wake(lambda _stream: True)
    with pytest.raises(NoIdentityError):
        await anext(stream)


async def test_a_stream_retries_soon_while_an_attestor_fails(served: ServedApi) -> None:
    served.api.policy = ServingPolicy(review=Review(HOUR, lambda: 0.0, retry_seconds=0.01))
    served.complete = False
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    served.complete, served.identities = True, (identity("a"), identity("b"))
    assert len(x509(await anext(stream)).svids) == 2
    await stream.aclose()


async def test_a_review_that_fails_ends_the_stream(
    served: ServedApi,
) -> None:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    served.identities = PeerError("it changed")
    with pytest.raises(PeerError):
        await anext(stream)
    assert served.asked == [True, False]


async def test_a_stream_sends_an_identity_that_a_review_finds(served: ServedApi) -> None:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    served.identities = (identity("a"), identity("b"))
    response = await anext(stream)
    await stream.aclose()
    assert len(x509(response).svids) == 2
    assert served.asked == [True, False, True], "attested again before the release"


async def test_a_review_without_a_change_sends_nothing(served: ServedApi) -> None:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    assert await is_silent(served, stream, attestations=3)
    assert len(served.lines.of("svid issued")) == 1


@pytest.mark.parametrize("failing", ["every attestor", "one attestor"])
async def test_a_stream_stays_open_while_attestors_fail(served: ServedApi, failing: str) -> None:
    served.identities = (identity("a"), identity("b"))
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    if failing == "every attestor":
        served.identities = AttestationError("the engine is down")
    else:
        served.complete, served.identities = False, (identity("a"),)
    assert await is_silent(served, stream, attestations=3)


def test_reviews_are_spread_and_never_later_than_the_interval() -> None:
    minute = dt.timedelta(minutes=1)
    assert Review(minute, lambda: -1.0).seconds(complete=True) == pytest.approx(54)
    assert Review(minute, lambda: 1.0).seconds(complete=True) == pytest.approx(60)
    assert Review(minute, lambda: 1.0).seconds(complete=False) == pytest.approx(10)


async def test_a_reload_uses_the_attestation_of_the_last_review(served: ServedApi) -> None:
    stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(stream)
    [opened] = served.streams.open
    served.selectors = frozenset({Selector("unix", "uid:1")})
    asked = len(served.asked)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(anext(stream))
        while len(served.asked) < asked + 2:
            await asyncio.sleep(0.01)
        assert opened.entitlement is not None
        assert opened.entitlement.attestation is not None
        assert opened.entitlement.attestation.selectors == served.selectors
        reading.cancel()
    await stream.aclose()


async def test_a_step_of_the_jwt_authority_does_not_wake_x509_streams(served: ServedApi) -> None:
    x509_stream = served.api.fetch_x509_svid(CALLER, pb.X509SVIDRequest())
    await anext(x509_stream)
    asked = len(served.asked)
    await served.authority.prepare(AuthorityKind.JWT)
    [stream] = served.streams.open
    assert not stream.changed.is_set()
    await served.authority.prepare(AuthorityKind.X509)
    assert stream.changed.is_set()
    assert len(served.asked) == asked
    await x509_stream.aclose()
