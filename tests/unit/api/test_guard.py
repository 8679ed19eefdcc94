"""Which failure a client sees as which status, and what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from agent.api.guard import (
    Guard,
    ServicerContext,
    UnsupportedError,
    method_of,
    reason_of,
    status_of,
)
from agent.api.workload import METHODS
from agent.authority.issuance import IssuanceError
from agent.errors import (
    AttestationError,
    AuthorityError,
    NoIdentityError,
    PeerError,
    PeerGoneError,
    RequestError,
    UnansweredError,
    UnavailableError,
)
from agent.kernel.account import Account
from agent.kernel.caller import Caller
from agent.pb import workloadapi_pb2 as pb
from agent.signals import Refused
from tests.support.fakes import Lines, quotas

CALLER = cast(
    "Caller",
    SimpleNamespace(
        account=Account(2, "a.service"),
        credentials=SimpleNamespace(pid=1, uid=2),
        process=SimpleNamespace(inode=7),
    ),
)
Code = grpc.StatusCode


def test_each_failure_has_a_word_in_the_metrics() -> None:
    words = {
        RequestError: Refused.REQUEST,
        UnsupportedError: Refused.UNSUPPORTED,
        PeerError: Refused.EVIDENCE,
        PeerGoneError: Refused.GONE,
        NoIdentityError: Refused.NO_ENTRY,
        AttestationError: Refused.ATTESTOR,
        UnansweredError: Refused.UNANSWERED,
        AuthorityError: Refused.AUTHORITY,
        IssuanceError: Refused.AUTHORITY,
        UnavailableError: Refused.UNAVAILABLE,
        ZeroDivisionError: Refused.INTERNAL,
    }
    assert {kind: reason_of(kind("why")) for kind in words} == words


def test_each_method_has_requests_of_its_own() -> None:
    methods = pb.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"].methods
    requests = {method.name: getattr(pb, method.input_type.name) for method in methods}
    assert {name: method_of(request) for name, request in requests.items()} == {
        name: name for name in METHODS
    }


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (RequestError("audience must be specified"), Code.INVALID_ARGUMENT, "audience must be sp"),
        (UnsupportedError("not served"), Code.UNIMPLEMENTED, "not served"),
        (PeerError("secret reason"), Code.PERMISSION_DENIED, "no identity issued"),
        (PeerGoneError("secret reason"), Code.PERMISSION_DENIED, "no identity issued"),
        (NoIdentityError("secret reason"), Code.PERMISSION_DENIED, "no identity issued"),
        (AttestationError("try again"), Code.UNAVAILABLE, "try again"),
        (AuthorityError("no key"), Code.UNAVAILABLE, "no key"),
        (ZeroDivisionError("secret"), Code.UNAVAILABLE, "internal error"),
    ],
)
def test_each_failure_has_its_status(error: Exception, code: Code, details: str) -> None:
    found, text = status_of(error)
    assert found is code
    assert text.startswith(details)
    assert "secret" not in text


class Aborted(Exception):  # noqa: N818 - what grpc raises is called AbortError
    """What `abort` raises, as in gRPC."""


class Context:
    """A call as the guard sees it."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata
        self.sent: list[bytes] = []
        self.code: Code | None = None
        self.details = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return "unix-abstract:token"

    async def write(self, message: bytes) -> None:
        self.sent.append(message)

    async def abort(self, code: Code, details: str, _trailing: tuple[tuple[str, str], ...]) -> None:
        self.code, self.details = code, details
        raise Aborted


class Table:
    def __init__(self, caller: Caller | PeerError = CALLER) -> None:
        self._caller = caller
        self.begun = 0

    def begin_call(self, peer: str) -> Caller:
        self.begun += 1
        return self.caller(peer)

    def caller(self, _peer: str) -> Caller:
        if isinstance(self._caller, PeerError):
            raise self._caller
        return self._caller


HEADER = ("workload.spiffe.io", "true")


async def test_a_call_without_the_header_has_begun_too() -> None:
    """Else others of the same user wait behind it until patience ends."""
    table = Table()
    context, _ = await stream(metadata=(), table=table)
    assert (context.code, table.begun) == (Code.INVALID_ARGUMENT, 1)


async def test_a_method_that_is_not_there_is_a_call_that_is_refused() -> None:
    """Else others of the same user wait behind it, and it is in no figure."""
    table, context, lines = Table(), Context(), Lines()
    guard = Guard(table, quotas(), lines.audit().refused, lines.log)
    handler = cast("Any", guard.unknown_methods().service(cast("Any", None)))
    with pytest.raises(Aborted):
        await handler.stream_stream(None, cast("ServicerContext", context))
    assert (context.code, table.begun) == (Code.UNIMPLEMENTED, 1)
    [line] = lines.of("call refused")
    assert (line["pid"], line["code"]) == (1, "UNIMPLEMENTED")


async def test_the_header_comes_before_who_calls() -> None:
    context, _ = await stream(metadata=(), table=Table(PeerError("nobody")))
    assert context.code is Code.INVALID_ARGUMENT


async def stream(
    *responses: pb.JWTBundlesResponse | Exception,
    metadata: tuple[tuple[str, str], ...] = (HEADER,),
    raw: bytes = b"",
    table: Table | None = None,
) -> tuple[Context, Lines]:
    """Run a stream handler over those responses; an exception among them is raised."""

    async def answer(
        caller: Caller, _request: pb.JWTBundlesRequest
    ) -> AsyncGenerator[pb.JWTBundlesResponse, None]:
        assert caller is CALLER
        for response in responses:
            if isinstance(response, Exception):
                raise response
            yield response

    context, lines = Context(*metadata), Lines()
    guard = Guard(table or Table(), quotas(), lines.audit().refused, lines.log)
    handler = cast("Any", guard.stream(pb.JWTBundlesRequest, answer))
    with pytest.raises(Aborted):
        await handler.unary_stream(raw, cast("ServicerContext", context))
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
async def test_the_header_must_be_there_exactly_once(
    metadata: tuple[tuple[str, str], ...],
) -> None:
    context, _ = await stream(pb.JWTBundlesResponse(), metadata=metadata)
    assert context.code is Code.INVALID_ARGUMENT
    assert not context.sent


async def test_a_stream_never_ends_with_ok() -> None:
    context, _ = await stream(pb.JWTBundlesResponse())
    assert context.code is Code.UNAVAILABLE


async def test_a_failure_in_the_middle_ends_the_stream_with_its_status() -> None:
    context, lines = await stream(pb.JWTBundlesResponse(), NoIdentityError("entry removed"))
    assert context.code is Code.PERMISSION_DENIED
    assert len(context.sent) == 1
    [line] = lines.of("call refused")
    assert line == {
        "event": "call refused",
        "level": "info",
        "reason": "entry removed",
        "code": "PERMISSION_DENIED",
        "method": "JWTBundlesRequest",
        "pid": 1,
        "uid": 2,
        "process": "boot/7",
    }


async def test_a_malformed_request_is_the_callers_fault() -> None:
    context, _ = await stream(raw=b"\xff\xff")
    assert context.code is Code.INVALID_ARGUMENT


async def test_one_whom_the_gate_does_not_know_is_denied_and_nobody_is_named() -> None:
    context, lines = await stream(table=Table(PeerError("unknown")))
    assert context.code is Code.PERMISSION_DENIED
    assert "pid" not in lines.of("call refused")[0]


async def test_a_defect_is_logged_with_its_trace_and_not_told() -> None:
    context, lines = await stream(ZeroDivisionError("in the middle"))
    assert context.code is Code.UNAVAILABLE
    assert "middle" not in context.details
    assert lines.of("internal error")[0]["exc_info"]
    assert lines.of("call refused")[0]["reason"] == "internal error (ZeroDivisionError)"


async def test_who_is_gone_when_the_call_fails_is_named_all_the_same() -> None:
    class Once(Table):
        """A table whose only connection ends while it is looked after."""

        def caller(self, peer: str) -> Caller:
            found = super().caller(peer)
            self._caller = PeerError("no such connection")
            return found

    _, lines = await stream(PeerGoneError("it exited"), table=Once())
    assert lines.of("call refused")[0]["pid"] == 1


async def test_one_call_too_many_is_unavailable_and_counted() -> None:
    full = quotas(attestations=1)
    waiting = asyncio.Event()

    async def answer(_caller: Caller, _request: pb.JWTSVIDRequest) -> pb.JWTSVIDResponse:
        await waiting.wait()
        return pb.JWTSVIDResponse()

    guard = Guard(Table(), full, lambda *_refusal: None, Lines().log)
    handler = cast("Any", guard.unary(pb.JWTSVIDRequest, answer))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(handler.unary_unary(b"", Context(HEADER)))
        await asyncio.sleep(0)
        second = Context(HEADER)
        with pytest.raises(Aborted):
            await handler.unary_unary(b"", second)
        waiting.set()
    assert first.result() == b""
    assert second.code is Code.UNAVAILABLE
    assert second.details == "too many attestations of all processes together; try again later"
    assert await handler.unary_unary(b"", Context(HEADER)) == b"", "the first has ended"


async def test_a_stream_counts_as_attested_from_its_first_message_on() -> None:
    full = quotas(attestations=1, streams=2)
    sent = asyncio.Event()

    async def answer(
        _caller: Caller, _request: pb.JWTBundlesRequest
    ) -> AsyncGenerator[pb.JWTBundlesResponse, None]:
        yield pb.JWTBundlesResponse()
        sent.set()
        await asyncio.get_running_loop().create_future()

    guard = Guard(Table(), full, lambda *_refusal: None, Lines().log)
    handler = cast("Any", guard.stream(pb.JWTBundlesRequest, answer))
    async with asyncio.TaskGroup() as tasks:
        streams = []
        for _ in range(2):
            streams.append(tasks.create_task(handler.unary_stream(b"", Context(HEADER))))
            await sent.wait()
            sent.clear()
        third = Context(HEADER)
        with pytest.raises(Aborted):
            await handler.unary_stream(b"", third)
        for stream in streams:
            stream.cancel()
    assert third.code is Code.UNAVAILABLE
    assert third.details.startswith("too many streams")


async def test_unary_methods_fail_alike() -> None:
    async def answer(_caller: Caller, _request: pb.JWTSVIDRequest) -> pb.JWTSVIDResponse:
        raise AuthorityError("no key")

    context = Context(HEADER)
    guard = Guard(Table(), quotas(), lambda *_refusal: None, Lines().log)
    handler = cast("Any", guard.unary(pb.JWTSVIDRequest, answer))
    with pytest.raises(Aborted):
        await handler.unary_unary(b"", context)
    assert (context.code, context.details) == (Code.UNAVAILABLE, "no key")
