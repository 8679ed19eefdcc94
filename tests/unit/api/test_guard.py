"""The guard: header, caller, quotas and status of every call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from agent.api.guard import MAX_METHOD_CHARS, Guard, Method, ServicerContext, Streaming, Unary
from agent.errors import AuthorityError, NoIdentityError, PeerError, PeerGoneError
from agent.kernel.caller import Caller
from agent.limits.quotas import Quotas
from agent.pb import workloadapi_pb2 as pb
from tests.support.fakes import FakeLog, quotas
from tests.unit.api.conftest import CALLER, HEADER, Aborted, Context, Table

Code = grpc.StatusCode


def handler_of(
    method: Method,
    *,
    table: Table | None = None,
    limits: Quotas | None = None,
    lines: FakeLog | None = None,
) -> Any:
    """The handler of a method called FetchSomething, behind a guard."""
    lines = lines or FakeLog()
    guard = Guard(table or Table(), limits or quotas(), lines.audit().refused, lines.log)
    call = cast("Any", SimpleNamespace(method="/S/FetchSomething"))
    handler = cast("Any", guard.handlers("S", {"FetchSomething": method}).service(call))
    return handler.unary_stream or handler.unary_unary


async def stream(
    *responses: pb.JWTBundlesResponse | Exception,
    metadata: tuple[tuple[str, str], ...] = (HEADER,),
    raw: bytes = b"",
    table: Table | None = None,
) -> tuple[Context, FakeLog]:
    """Call a streaming method that yields these responses; an exception among them is raised."""

    async def answer(
        caller: Caller, _request: pb.JWTBundlesRequest
    ) -> AsyncGenerator[pb.JWTBundlesResponse, None]:
        assert caller is CALLER
        for response in responses:
            if isinstance(response, Exception):
                raise response
            yield response

    context, lines = Context(*metadata), FakeLog()
    handle = handler_of(Streaming(pb.JWTBundlesRequest, answer), table=table, lines=lines)
    with pytest.raises(Aborted):
        await handle(raw, cast("ServicerContext", context))
    return context, lines


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
    context, _ = await stream(pb.JWTBundlesResponse(), metadata=metadata)
    assert context.code is Code.INVALID_ARGUMENT
    assert not context.sent


async def test_a_call_without_the_header_counts_as_a_call() -> None:
    """Otherwise it holds back the next calls of its user until the fair queue's timeout."""
    table = Table()
    context, _ = await stream(metadata=(), table=table)
    assert (context.code, table.begun) == (Code.INVALID_ARGUMENT, 1)


async def test_the_header_is_checked_before_the_caller() -> None:
    context, _ = await stream(metadata=(), table=Table(PeerError("unknown")))
    assert context.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/envoy.Secrets/FetchSecrets", "/envoy.Secrets/FetchSecrets"),
        ("/" + "x" * 9000, "/" + "x" * (MAX_METHOD_CHARS - 1)),
        ("/\udcff", "/\\udcff"),
    ],
)
async def test_an_unknown_method_counts_as_a_call_and_is_logged_by_its_path(
    path: str, logged: str
) -> None:
    table, context, lines = Table(), Context(), FakeLog()
    guard = Guard(table, quotas(), lines.audit().refused, lines.log)
    call = cast("Any", SimpleNamespace(method=path))
    handler = cast("Any", guard.unknown_methods().service(call))
    with pytest.raises(Aborted):
        await handler.stream_stream(None, cast("ServicerContext", context))
    assert (context.code, table.begun) == (Code.UNIMPLEMENTED, 1)
    [line] = lines.of("call refused")
    assert (line["pid"], line["code"], line["method"]) == (1, "UNIMPLEMENTED", logged)


async def test_a_stream_never_ends_with_ok() -> None:
    context, _ = await stream(pb.JWTBundlesResponse())
    assert context.code is Code.UNAVAILABLE


async def test_an_error_after_a_response_ends_the_stream_with_its_code() -> None:
    context, lines = await stream(pb.JWTBundlesResponse(), NoIdentityError("entry removed"))
    assert context.code is Code.PERMISSION_DENIED
    assert len(context.sent) == 1
    [line] = lines.of("call refused")
    assert line == {
        "event": "call refused",
        "level": "info",
        "reason": "entry removed",
        "code": "PERMISSION_DENIED",
        "method": "FetchSomething",
        "pid": 1,
        "uid": 2,
        "process_key": "boot/7",
    }


async def test_a_malformed_request_is_an_invalid_argument() -> None:
    context, _ = await stream(raw=b"\xff\xff")
    assert context.code is Code.INVALID_ARGUMENT


async def test_a_caller_that_the_gate_does_not_know_is_denied_and_not_named() -> None:
    context, lines = await stream(table=Table(PeerError("unknown")))
    assert context.code is Code.PERMISSION_DENIED
    assert "pid" not in lines.of("call refused")[0]


async def test_the_log_has_the_traceback_of_a_defect_and_the_caller_has_not() -> None:
    context, lines = await stream(ZeroDivisionError("in the middle"))
    assert context.code is Code.UNAVAILABLE
    assert "middle" not in context.details
    [line] = lines.of("internal error")
    assert line["exc_info"]
    assert (line["where"], line["method"]) == ("call", "FetchSomething")
    assert lines.of("call refused")[0]["reason"] == "internal error (ZeroDivisionError)"


async def test_a_caller_that_exits_during_its_call_is_still_named() -> None:
    class Once(Table):
        """The only connection ends after the first look."""

        def caller(self, peer: str) -> Caller:
            found = super().caller(peer)
            self._caller = PeerError("no such connection")
            return found

    _, lines = await stream(PeerGoneError("it exited"), table=Once())
    assert lines.of("call refused")[0]["pid"] == 1


async def test_a_call_over_the_quota_is_unavailable_until_another_ends() -> None:
    waiting = asyncio.Event()

    async def answer(_caller: Caller, _request: pb.JWTSVIDRequest) -> pb.JWTSVIDResponse:
        await waiting.wait()
        return pb.JWTSVIDResponse()

    handle = handler_of(Unary(pb.JWTSVIDRequest, answer), limits=quotas(attestations=1))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(handle(b"", Context(HEADER)))
        await asyncio.sleep(0)
        second = Context(HEADER)
        with pytest.raises(Aborted):
            await handle(b"", second)
        waiting.set()
    assert first.result() == b""
    assert second.code is Code.UNAVAILABLE
    assert second.details == "too many attestations of all processes together; try again later"
    assert await handle(b"", Context(HEADER)) == b"", "the first has ended"


async def test_a_stream_leaves_the_attestation_quota_at_its_first_message() -> None:
    sent = asyncio.Event()

    async def answer(
        _caller: Caller, _request: pb.JWTBundlesRequest
    ) -> AsyncGenerator[pb.JWTBundlesResponse, None]:
        yield pb.JWTBundlesResponse()
        sent.set()
        await asyncio.get_running_loop().create_future()

    limits = quotas(attestations=1, streams=2)
    handle = handler_of(Streaming(pb.JWTBundlesRequest, answer), limits=limits)
    async with asyncio.TaskGroup() as tasks:
        streams = []
        for _ in range(2):
            streams.append(tasks.create_task(handle(b"", Context(HEADER))))
            await sent.wait()
            sent.clear()
        third = Context(HEADER)
        with pytest.raises(Aborted):
            await handle(b"", third)
        for each in streams:
            each.cancel()
    assert third.code is Code.UNAVAILABLE
    assert third.details.startswith("too many streams")


async def test_a_unary_call_fails_with_the_code_of_its_error() -> None:
    async def answer(_caller: Caller, _request: pb.JWTSVIDRequest) -> pb.JWTSVIDResponse:
        raise AuthorityError("no key")

    context = Context(HEADER)
    with pytest.raises(Aborted):
        await handler_of(Unary(pb.JWTSVIDRequest, answer))(b"", context)
    assert (context.code, context.details) == (Code.UNAVAILABLE, "no key")
