"""The guard: header, caller, quotas and status of every call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest

from agent.api.guard import Guard
from agent.api.workload_messages import Response, respond
from agent.errors import (
    AuthorityError,
    NoIdentityError,
    PeerError,
    PeerGoneError,
    ResponseSizeError,
    StoppingError,
)
from agent.kernel.caller import Caller
from agent.limits.quotas import Quotas
from agent.pb import workloadapi_pb2 as pb
from agent.telemetry.metrics import Metrics, Words
from agent.telemetry.plain import EXCERPT_CHARS
from agent.transport.service import Services, StatusError
from agent.transport.service import StatusCode as Code
from tests.support.fakes import FakeLog, quotas
from tests.unit.api.conftest import CALLER, HEADER, FakeCall

if TYPE_CHECKING:
    from agent.api.guard import Streaming, Unary

SERVICE = pb.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
UNARY, STREAM = "FetchJWTSVID", "FetchJWTBundles"
EMPTY = respond(pb.JWTBundlesResponse())


class Guarded:
    """The unary and the streaming method behind a guard, with the log and the metrics of both."""

    def __init__(
        self,
        *,
        unary: Unary | None = None,
        streaming: Streaming | None = None,
        limits: Quotas | None = None,
    ) -> None:
        self.lines = FakeLog()
        self.metrics = Metrics(Words(methods=(UNARY, STREAM)))
        note = self.lines.audit().refused
        guard = Guard(limits or quotas(), note, self.lines.log, self.metrics)
        methods = guard.methods(
            SERVICE,
            unary={} if unary is None else {UNARY: unary},
            streaming={} if streaming is None else {STREAM: streaming},
        )
        self.services = Services(methods=methods, unknown=guard.unknown_method(), observer=guard)

    def has_counted(self, series: str, times: int = 1) -> bool:
        return f"{series} {float(times)}\n" in self.metrics.text()


def call(method: str, raw: bytes = b"", *, caller: Caller | PeerError = CALLER) -> FakeCall:
    return FakeCall(f"/{SERVICE.full_name}/{method}", raw, metadata=(HEADER,), caller=caller)


def yielding(*responses: Response | Exception) -> Streaming:
    """A streaming method that yields these responses; an exception among them is raised."""

    async def answer(
        caller: Caller, _request: pb.JWTBundlesRequest
    ) -> AsyncGenerator[Response, None]:
        assert caller is CALLER
        for response in responses:
            if isinstance(response, Exception):
                raise response
            yield response

    return answer


async def stream(
    *responses: Response | Exception, made: FakeCall | None = None
) -> tuple[FakeCall, Guarded]:
    """Call a streaming method that yields these responses."""
    guarded, made = Guarded(streaming=yielding(*responses)), made or call(STREAM)
    await made.of(guarded.services)
    return made, guarded


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("workload.spiffe.io", "True"),),
        (("workload.spiffe.io", "1"),),
        (HEADER, HEADER),
        (("broker.spiffe.io", "true"),),
    ],
)
async def test_the_security_header_must_be_there_exactly_once(
    metadata: tuple[tuple[str, str], ...],
) -> None:
    made = FakeCall(f"/{SERVICE.full_name}/{STREAM}", b"", metadata=metadata)
    await stream(EMPTY, made=made)
    assert made.code is Code.INVALID_ARGUMENT
    assert not made.sent


async def test_the_header_is_checked_before_the_caller() -> None:
    made = FakeCall(f"/{SERVICE.full_name}/{STREAM}", b"", caller=PeerError("unknown"))
    await stream(made=made)
    assert made.code is Code.INVALID_ARGUMENT


async def test_the_caller_is_asked_for_in_every_call() -> None:
    guarded = Guarded(streaming=yielding(EMPTY))
    first, second = call(STREAM), call(STREAM, caller=PeerGoneError("it exited"))
    await first.of(guarded.services)
    await second.of(guarded.services)
    assert (len(first.sent), len(second.sent)) == (1, 0)
    assert second.code is Code.PERMISSION_DENIED


async def test_an_unknown_method_is_logged_by_its_path_and_counted_as_other() -> None:
    guarded, made = Guarded(), FakeCall("/envoy.Secrets/FetchSecrets")
    await made.of(guarded.services)
    assert made.code is Code.UNIMPLEMENTED
    [line] = guarded.lines.of("call refused")
    assert (line["pid"], line["code"]) == (1, "UNIMPLEMENTED")
    assert line["method"] == "/envoy.Secrets/FetchSecrets"
    assert guarded.has_counted('vouchd_calls_total{code="UNIMPLEMENTED",method="other"}')
    assert guarded.has_counted('vouchd_refusals_total{reason="unsupported"}')


async def test_an_unknown_method_is_refused_before_its_request_is_complete() -> None:
    unknown = Guarded().services.unknown
    assert (unknown.streams_requests, unknown.max_request_bytes) == (True, 0)


async def test_a_call_that_breaks_a_rule_of_grpc_is_logged_and_counted() -> None:
    guarded = Guarded(streaming=yielding())
    error = StatusError(Code.RESOURCE_EXHAUSTED, "too large", (("a", "b"),))
    status = guarded.services.observer.failed(call(STREAM), error)
    assert (status.code, str(status), status.metadata) == (error.code, str(error), error.metadata)
    [line] = guarded.lines.of("call refused")
    assert (line["code"], line["reason"]) == ("RESOURCE_EXHAUSTED", "too large")
    assert guarded.has_counted('vouchd_refusals_total{reason="size"}')


async def test_a_response_that_is_too_large_is_logged_and_counted() -> None:
    made, guarded = await stream(ResponseSizeError("the response has 5 bytes"))
    assert (made.code, made.details) == (Code.RESOURCE_EXHAUSTED, "the response has 5 bytes")
    assert guarded.lines.of("call refused")[0]["reason"] == "the response has 5 bytes"
    assert guarded.has_counted('vouchd_refusals_total{reason="response_size"}')


async def test_the_log_has_the_beginning_of_a_text_that_a_caller_sent() -> None:
    """The caller chooses the requested SPIFFE ID, which errors quote."""
    _, guarded = await stream(NoIdentityError(f"the caller asked for {'a' * 30_000}\x1b[31m"))
    reason = guarded.lines.of("call refused")[0]["reason"]
    assert reason.startswith("the caller asked for aaa")
    assert len(reason) == EXCERPT_CHARS


async def test_a_stream_never_ends_with_ok() -> None:
    made, _ = await stream(EMPTY)
    assert made.code is Code.UNAVAILABLE


async def test_a_stream_that_ends_with_the_agent_has_a_hint_and_is_no_refusal() -> None:
    made, guarded = await stream(EMPTY, StoppingError("the agent stops"))
    assert made.code is Code.UNAVAILABLE
    assert 0 <= int(made.trailing["grpc-retry-pushback-ms"]) < 1000
    assert not guarded.lines.of("call refused")


async def test_an_error_after_a_response_ends_the_stream_with_its_code() -> None:
    made, guarded = await stream(EMPTY, NoIdentityError("entry removed"))
    assert made.code is Code.PERMISSION_DENIED
    assert len(made.sent) == 1
    [line] = guarded.lines.of("call refused")
    assert line == {
        "event": "call refused",
        "level": "info",
        "reason": "entry removed",
        "code": "PERMISSION_DENIED",
        "method": STREAM,
        "pid": 1,
        "uid": 2,
        "process_key": "boot/7",
    }
    assert guarded.has_counted(f'vouchd_calls_total{{code="PERMISSION_DENIED",method="{STREAM}"}}')


async def test_a_malformed_request_is_an_invalid_argument() -> None:
    made, _ = await stream(made=call(STREAM, b"\xff\xff"))
    assert made.code is Code.INVALID_ARGUMENT


async def test_a_caller_that_the_kernel_cannot_name_is_denied_and_not_named() -> None:
    made, guarded = await stream(made=call(STREAM, caller=PeerError("unknown")))
    assert made.code is Code.PERMISSION_DENIED
    assert "pid" not in guarded.lines.of("call refused")[0]


async def test_a_caller_that_has_exited_is_still_named() -> None:
    made = FakeCall(
        f"/{SERVICE.full_name}/{STREAM}",
        b"",
        metadata=(HEADER,),
        caller=PeerGoneError("it exited"),
        peer=CALLER,
    )
    _, guarded = await stream(made=made)
    assert guarded.lines.of("call refused")[0]["pid"] == 1


async def test_the_log_has_the_traceback_of_a_defect_and_the_caller_has_not() -> None:
    made, guarded = await stream(ZeroDivisionError("in the middle"))
    assert made.code is Code.UNAVAILABLE
    assert "middle" not in made.details
    [line] = guarded.lines.of("internal error")
    assert line["exc_info"]
    assert (line["where"], line["method"]) == ("call", STREAM)
    assert guarded.lines.of("call refused")[0]["reason"] == "internal error (ZeroDivisionError)"


async def test_a_call_over_the_quota_is_unavailable_until_another_ends() -> None:
    waiting = asyncio.Event()

    async def answer(_caller: Caller, _request: pb.JWTSVIDRequest) -> Response:
        await waiting.wait()
        return respond(pb.JWTSVIDResponse())

    guarded = Guarded(unary=answer, limits=quotas(attestations=1))
    first, second, third = call(UNARY), call(UNARY), call(UNARY)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(first.of(guarded.services))
        await asyncio.sleep(0)
        await second.of(guarded.services)
        waiting.set()
    assert len(first.sent) == 1
    assert second.code is Code.UNAVAILABLE
    assert second.details == "too many attestations of all processes together; try again later"
    await third.of(guarded.services)
    assert third.code is Code.OK, "the first has ended"
    assert guarded.has_counted(f'vouchd_calls_total{{code="OK",method="{UNARY}"}}', 2)


async def test_a_stream_leaves_the_attestation_quota_at_its_first_message() -> None:
    sent = asyncio.Event()

    async def answer(
        _caller: Caller, _request: pb.JWTBundlesRequest
    ) -> AsyncGenerator[Response, None]:
        yield EMPTY
        sent.set()
        await asyncio.get_running_loop().create_future()

    guarded = Guarded(streaming=answer, limits=quotas(attestations=1, streams=2))
    third = call(STREAM)
    async with asyncio.TaskGroup() as tasks:
        streams = []
        for _ in range(2):
            streams.append(tasks.create_task(call(STREAM).of(guarded.services)))
            await sent.wait()
            sent.clear()
        await third.of(guarded.services)
        for each in streams:
            each.cancel()
    assert third.code is Code.UNAVAILABLE
    assert third.details.startswith("too many streams")
    assert guarded.has_counted(f'vouchd_calls_total{{code="CANCELLED",method="{STREAM}"}}', 2)


async def test_a_stream_that_its_client_leaves_is_closed_with_its_call() -> None:
    """What a stream watches is released at once, not when its objects are collected."""
    is_open = False

    async def answer(
        _caller: Caller, _request: pb.JWTBundlesRequest
    ) -> AsyncGenerator[Response, None]:
        nonlocal is_open
        is_open = True
        try:
            yield EMPTY
        finally:
            is_open = False

    class Left(FakeCall):
        async def send(self, _framed: bytes) -> None:
            assert is_open
            raise StatusError(Code.CANCELLED, "the client hung up")

    left = Left(f"/{SERVICE.full_name}/{STREAM}", b"", metadata=(HEADER,))
    await left.of(Guarded(streaming=answer).services)
    assert left.code is Code.CANCELLED
    assert not is_open


async def test_a_unary_call_fails_with_the_code_of_its_error() -> None:
    async def answer(_caller: Caller, _request: pb.JWTSVIDRequest) -> Response:
        raise AuthorityError("no key")

    made = call(UNARY)
    await made.of(Guarded(unary=answer).services)
    assert (made.code, made.details) == (Code.UNAVAILABLE, "no key")
