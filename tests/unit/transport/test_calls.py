"""The calls of a connection, over a half that records its commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.kernel.caller import Caller
from agent.transport.calls import Calls, CallTimes
from agent.transport.grpc_protocol import (
    RESPONSE_HEADERS,
    TRAILERS_OK,
    frame_message,
    http_headers,
    trailers,
    trailers_only,
)
from agent.transport.half import (
    BodyReceived,
    ErrorCode,
    Event,
    PingAnswered,
    RequestStarted,
    StreamDrained,
    StreamReset,
)
from agent.transport.served_call import BYTES_IN_TIME
from agent.transport.service import Call, Method, Services, StatusCode, StatusError
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import settle
from tests.unit.transport.conftest import REQUEST, request_headers

LIMIT = 100
HELLO, WORLD = frame_message(b"hello"), frame_message(b"world")
CALLER = cast("Caller", SimpleNamespace())
AT_ONCE = 0.0
NEVER = 1000.0


class RecordingHalf:
    """Records commands as tuples. A stream in `blocked` has no window."""

    def __init__(self) -> None:
        self.commands: list[tuple[object, ...]] = []
        self.blocked: set[int] = set()
        self.released: list[int] = []

    def send_headers(self, stream: int, block: bytes, *, end: bool = False) -> None:
        self.commands.append(("only trailers" if end else "headers", stream, block))

    def send_data(self, stream: int, data: bytes) -> bool:
        self.commands.append(("data", stream, data))
        return stream not in self.blocked

    def send_trailers(self, stream: int, block: bytes) -> None:
        self.commands.append(("trailers", stream, block))

    def consume(self, stream: int, count: int) -> None:
        self.commands.append(("consume", stream, count))

    def reset_stream(self, stream: int, code: ErrorCode) -> None:
        self.commands.append(("reset", stream, code))

    def release(self, stream: int) -> None:
        self.released.append(stream)


Handler = Callable[[Call], Coroutine[Any, Any, None]]


class Served:
    """A connection with the method /test.Echo/Say, and the observer of its calls."""

    def __init__(
        self,
        handler: Handler,
        *,
        streams_requests: bool = False,
        limit: int = LIMIT,
        **times: float,
    ) -> None:
        self.half = RecordingHalf()
        self.flushes = 0
        self.turns_behind = 0
        self.failures: list[Exception] = []
        self.paths_of_failures: list[str] = []
        self.ends: list[tuple[str, StatusCode]] = []
        services = Services(
            unknown=Method(answer=no_such_method, max_request_bytes=0, streams_requests=True),
            observer=self,
            methods={
                REQUEST[b":path"]: Method(
                    answer=handler, max_request_bytes=limit, streams_requests=streams_requests
                )
            },
        )
        loop = asyncio.get_running_loop()
        bounds = CallTimes(**{"half_request": NEVER, "untaken": NEVER, **times})
        self.calls = Calls(cast("Any", self.half), services, self, loop, bounds)

    @property
    def peer(self) -> Caller | None:
        return CALLER

    def caller(self) -> Caller:
        return CALLER

    def is_behind(self) -> bool:
        self.turns_behind -= 1
        return self.turns_behind >= 0

    def flush(self) -> None:
        self.flushes += 1

    def failed(self, call: Call, error: Exception) -> StatusError:
        self.failures.append(error)
        self.paths_of_failures.append(call.path)
        if isinstance(error, StatusError):
            return error
        return StatusError(StatusCode.UNKNOWN, "internal error")

    def ended(self, call: Call, code: StatusCode) -> None:
        self.ends.append((call.path, code))

    def take(self, *events: Event) -> None:
        self.calls.take(events)

    def ask(self, *bodies: bytes, ended: bool = True, **changes: bytes | None) -> None:
        """Send a request on stream 1 in one turn. `changes` are fields with _ for -."""
        fields = {name.replace("_", "-").encode(): value for name, value in changes.items()}
        parts = [BodyReceived(1, body, ended=False) for body in bodies]
        if ended and parts:
            parts[-1] = parts[-1]._replace(ended=True)
        self.take(RequestStarted(1, request_headers(fields), ended and not parts), *parts)

    @property
    def status(self) -> StatusCode:
        """The only status so far."""
        [(path, code)] = self.ends
        assert path == "/test.Echo/Say"
        return code

    def assert_refused(self, code: StatusCode, http_status: int = 200) -> None:
        """The call was refused once, and does not count any more."""
        [error] = self.failures
        assert isinstance(error, StatusError)
        assert error.code is code is self.status
        if http_status == 200:
            assert self.half.commands[-1] == ("only trailers", 1, trailers_only(error))
        else:
            assert self.half.commands[-3:] == [
                ("headers", 1, http_headers(http_status)),
                ("data", 1, f"{error}\n".encode()),
                ("trailers", 1, trailers(error)),
            ]
        assert (self.half.released, len(self.calls), self.calls.held_bytes) == ([1], 0, 0)

    async def until_ended(self) -> None:
        async with asyncio.timeout(SAFETY_SECONDS):
            while not self.ends:
                await asyncio.sleep(0)


async def no_such_method(_call: Call) -> None:
    raise StatusError(StatusCode.UNIMPLEMENTED, "there is no such method")


async def echo(call: Call) -> None:
    await call.send(frame_message(call.request))


async def wait_forever(_call: Call) -> None:
    await asyncio.get_running_loop().create_future()


class Paused:
    """A handler that sends a first response, then waits for `go`, then sends a second."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, call: Call) -> None:
        await call.send(HELLO)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await call.send(WORLD)


async def echo_each(call: Call) -> None:
    async for message in call.requests():
        await call.send(frame_message(message))


ECHOED = [("headers", 1, RESPONSE_HEADERS), ("data", 1, HELLO), ("trailers", 1, TRAILERS_OK)]


# --- requests and responses ----------------------------------------------------------------------


async def test_a_call_that_needs_not_wait_is_answered_in_the_turn_of_its_request() -> None:
    served, tasks = Served(echo), len(asyncio.all_tasks())
    served.ask(HELLO)
    assert served.half.commands == ECHOED
    assert (served.half.released, served.status) == ([1], StatusCode.OK)
    assert (served.calls.begun, len(served.calls), served.calls.unanswered) == (1, 0, 0)
    assert len(asyncio.all_tasks()) == tasks
    assert served.flushes == 0, "the reader flushes once for its turn"


async def test_a_handler_sees_the_path_the_metadata_and_the_caller() -> None:
    seen: list[object] = []

    async def look(call: Call) -> None:
        seen.extend((call.path, call.metadata("user-agent"), call.metadata("x"), call.request))
        seen.extend((call.caller(), call.peer))

    served = Served(look)
    served.ask(HELLO)
    assert seen == ["/test.Echo/Say", ("test",), (), b"hello", CALLER, CALLER]


async def test_a_call_without_a_response_message_ends_with_headers_and_trailers() -> None:
    async def answer(_call: Call) -> None:
        pass

    served = Served(answer)
    served.ask(HELLO)
    assert served.half.commands == [ECHOED[0], ECHOED[2]]


async def test_a_message_in_parts_is_one_request() -> None:
    served = Served(echo)
    served.take(RequestStarted(1, request_headers({}), ended=False))
    assert len(served.calls) == served.calls.unanswered == 1
    for part in (HELLO[:2], HELLO[2:7]):
        served.take(BodyReceived(1, part, ended=False))
    assert served.calls.held_bytes == 7
    assert served.half.commands == [("consume", 1, 2), ("consume", 1, 5)]
    served.take(BodyReceived(1, HELLO[7:], ended=False), BodyReceived(1, b"", ended=True))
    assert served.half.commands[3:] == ECHOED
    assert served.calls.held_bytes == 0


async def test_a_stream_of_responses_goes_on_in_a_task_and_each_step_is_flushed_once() -> None:
    paused = Paused()
    served = Served(paused)
    served.ask(HELLO)
    assert served.half.commands == ECHOED[:2]
    assert (len(served.calls), served.calls.unanswered, served.ends) == (1, 0, [])
    await settle()
    flushes = served.flushes
    paused.go.set()
    await settle()
    assert served.half.commands[2:] == [("data", 1, WORLD), ("trailers", 1, TRAILERS_OK)]
    assert served.flushes == flushes + 1
    assert (served.half.released, len(served.calls), served.status) == ([1], 0, StatusCode.OK)


async def test_calls_of_one_connection_run_at_the_same_time() -> None:
    paused = Paused()
    served = Served(paused)
    for stream in (1, 3):
        served.take(
            RequestStarted(stream, request_headers({}), ended=False),
            BodyReceived(stream, HELLO, ended=True),
        )
    assert (len(served.calls), served.calls.begun) == (2, 2)
    paused.go.set()
    await settle()
    assert sorted(served.half.released) == [1, 3]


async def test_events_of_the_connection_and_of_ended_calls_are_ignored() -> None:
    served = Served(echo)
    served.ask(HELLO)
    served.take(
        PingAnswered(bytes(8), 0),
        BodyReceived(1, b"late", ended=True),
        StreamReset(1, ErrorCode.CANCEL, by_client=True),
        StreamDrained(1),
    )
    assert served.half.commands == ECHOED
    assert len(served.ends) == 1


async def a_turn_later() -> bytes:
    await asyncio.sleep(0)
    return HELLO


async def by_event() -> bytes:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    await event.wait()
    return HELLO


async def by_tasks() -> bytes:
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(a_turn_later()) for _ in range(3)]
    await asyncio.wait(tasks)
    return (await asyncio.gather(*tasks))[0] and await tasks[1]


@pytest.mark.parametrize(
    "wait",
    [
        a_turn_later,
        by_event,
        by_tasks,
        lambda: asyncio.to_thread(lambda: HELLO),
        lambda: asyncio.wait_for(by_event(), SAFETY_SECONDS),
    ],
)
async def test_a_handler_may_wait_for_futures_of_every_kind(
    wait: Callable[[], Coroutine[Any, Any, bytes]],
) -> None:
    async def answer(call: Call) -> None:
        for _ in range(2):
            await call.send(await wait())

    served = Served(answer)
    served.ask(HELLO)
    await served.until_ended()
    assert served.half.commands == [*ECHOED[:2], *ECHOED[1:]]


async def test_an_error_for_which_a_handler_waits_is_raised_in_it() -> None:
    waited = asyncio.get_running_loop().create_future()

    async def answer(_call: Call) -> None:
        await waited

    served = Served(answer)
    served.ask(HELLO)
    waited.set_exception(ZeroDivisionError())
    await served.until_ended()
    assert [type(each) for each in served.failures] == [ZeroDivisionError]


async def test_a_handler_has_no_task_even_if_it_waits() -> None:
    served, tasks = Served(Paused()), len(asyncio.all_tasks())
    served.ask(HELLO)
    await settle()
    assert len(served.calls) == 1
    assert len(asyncio.all_tasks()) == tasks
    served.calls.close()


# --- requests that break the rules ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("bodies", "code"),
    [
        ((), StatusCode.UNIMPLEMENTED),
        ((b"",), StatusCode.UNIMPLEMENTED),
        ((HELLO[:4],), StatusCode.INTERNAL),
        ((HELLO[:-1],), StatusCode.INTERNAL),
        ((HELLO, HELLO), StatusCode.UNIMPLEMENTED),
        ((HELLO + HELLO,), StatusCode.UNIMPLEMENTED),
        ((b"\1" + HELLO[1:],), StatusCode.INTERNAL),
        ((frame_message(b"x" * (LIMIT + 1)),), StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_request_that_is_not_one_allowed_message_is_refused(
    bodies: tuple[bytes, ...], code: StatusCode
) -> None:
    served = Served(echo)
    served.ask(*bodies)
    served.assert_refused(code)


async def test_a_request_that_is_too_large_is_refused_by_its_first_bytes() -> None:
    served = Served(echo)
    served.ask(b"\0\0\1\0\0", ended=False)
    served.assert_refused(StatusCode.RESOURCE_EXHAUSTED)
    served.take(BodyReceived(1, b"x" * 1000, ended=False))
    assert served.calls.held_bytes == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"te": None}, StatusCode.INVALID_ARGUMENT),
        ({"grpc_timeout": b"1"}, StatusCode.INVALID_ARGUMENT),
        ({"grpc_encoding": b"gzip"}, StatusCode.UNIMPLEMENTED),
    ],
)
async def test_a_header_block_that_breaks_a_rule_is_refused_before_any_body(
    changes: dict[str, bytes | None], code: StatusCode
) -> None:
    served = Served(echo)
    served.ask(ended=False, **changes)
    served.assert_refused(code)
    assert served.calls.begun == 1


@pytest.mark.parametrize(
    ("changes", "http_status"), [({"content_type": b"text/html"}, 415), ({":method": b"PUT"}, 405)]
)
async def test_a_request_of_another_protocol_is_refused_at_its_end(
    changes: dict[str, bytes | None], http_status: int
) -> None:
    served = Served(echo)
    served.ask(b"any", ended=False, **changes)
    assert served.half.commands == []
    served.take(BodyReceived(1, b"body", ended=True))
    served.assert_refused(StatusCode.INVALID_ARGUMENT, http_status)


async def test_a_refusal_with_a_text_counts_until_flow_control_has_let_it_pass() -> None:
    """A client with a closed window would otherwise hold any number of them."""
    served = Served(echo)
    served.half.blocked.add(1)
    served.take(RequestStarted(1, request_headers({b":method": b"GET"}), ended=True))
    assert (len(served.calls), served.half.released) == (1, [])
    served.take(StreamDrained(1))
    await served.until_ended()
    served.assert_refused(StatusCode.INVALID_ARGUMENT, 405)


async def test_a_refusal_with_a_text_that_is_not_taken_is_cut() -> None:
    served = Served(echo, untaken=0.0)
    served.half.blocked.add(1)
    served.take(RequestStarted(1, request_headers({b":method": b"GET"}), ended=True))
    await served.until_ended()
    assert served.half.commands[-1] == ("reset", 1, ErrorCode.CANCEL)
    assert (len(served.calls), served.half.released) == (0, [1])


async def test_a_request_of_another_protocol_without_a_body_is_refused_at_once() -> None:
    served = Served(echo)
    served.take(RequestStarted(1, request_headers({b":method": b"GET"}), ended=True))
    served.assert_refused(StatusCode.INVALID_ARGUMENT, 405)


async def test_an_unknown_method_is_refused_before_its_request_is_complete() -> None:
    served = Served(echo)
    fields = request_headers({b":path": b"/no/such\xff"})
    served.take(RequestStarted(1, fields, ended=False))
    assert served.ends == [("/no/such\\xff", StatusCode.UNIMPLEMENTED)]
    assert served.half.commands[0][0] == "only trailers"


async def test_half_a_request_is_refused_after_its_time() -> None:
    served = Served(echo, half_request=AT_ONCE)
    served.ask(HELLO[:6], ended=False)
    assert not served.ends
    await served.until_ended()
    served.assert_refused(StatusCode.UNAVAILABLE)
    assert served.flushes == 1


@pytest.mark.parametrize(
    ("part", "status"), [(BYTES_IN_TIME, StatusCode.OK), (1, StatusCode.UNAVAILABLE)]
)
async def test_a_request_gets_its_time_again_for_each_large_part(
    part: int, status: StatusCode
) -> None:
    served = Served(echo, half_request=AT_ONCE, limit=20 * part)
    body = frame_message(bytes(20 * part))
    served.ask(body[: part + 5], ended=False)
    for at in range(part + 5, len(body), part):
        await asyncio.sleep(0)
        served.take(BodyReceived(1, body[at : at + part], ended=at + part >= len(body)))
    await served.until_ended()
    assert served.status is status


async def test_a_request_is_not_late_while_the_agent_leaves_it_in_the_socket() -> None:
    served = Served(echo, half_request=AT_ONCE)
    served.turns_behind = 5
    served.ask(HELLO[:6], ended=False)
    while served.turns_behind:
        assert not served.ends
        await asyncio.sleep(0)
    served.take(BodyReceived(1, HELLO[6:], ended=True))
    assert served.status is StatusCode.OK


async def test_half_a_request_ends_at_the_deadline_of_its_call() -> None:
    served = Served(echo)
    served.ask(HELLO[:6], ended=False, grpc_timeout=b"1m")
    await served.until_ended()
    served.assert_refused(StatusCode.DEADLINE_EXCEEDED)


async def test_a_client_that_sends_many_messages_at_once_does_not_hold_up_the_others() -> None:
    served = Served(echo_each, streams_requests=True)
    served.ask(HELLO * 20)
    echoed, turns = 0, 0
    while not served.ends:
        before, turns = echoed, turns + 1
        await asyncio.sleep(0)
        echoed = sum(command[0] == "data" for command in served.half.commands)
        assert echoed - before <= 1, "the rest waits for turns of the event loop"
        assert turns < 1000
    assert echoed == 20


async def test_a_request_that_is_complete_in_time_has_no_timer_any_more() -> None:
    served = Served(wait_forever, half_request=AT_ONCE)
    served.ask(HELLO[:6], ended=False)
    served.take(BodyReceived(1, HELLO[6:], ended=True))
    await settle()
    assert not served.ends
    served.calls.close()


# --- failures of handlers ------------------------------------------------------------------------


async def test_a_handler_that_raises_at_once_ends_its_call_by_trailers_only() -> None:
    async def answer(_call: Call) -> None:
        raise ZeroDivisionError

    served = Served(answer)
    served.ask(HELLO)
    error = StatusError(StatusCode.UNKNOWN, "internal error")
    assert served.half.commands == [("only trailers", 1, trailers_only(error))]
    assert [type(each) for each in served.failures] == [ZeroDivisionError]
    assert served.status is StatusCode.UNKNOWN


@pytest.mark.parametrize("waits", [False, True])
async def test_a_handler_that_raises_after_a_response_ends_its_call_by_trailers(
    *, waits: bool
) -> None:
    error = StatusError(StatusCode.PERMISSION_DENIED, "no more", (("retry", "1"),))

    async def answer(call: Call) -> None:
        await call.send(HELLO)
        if waits:
            await asyncio.sleep(0)
        raise error

    served = Served(answer)
    served.ask(HELLO)
    await served.until_ended()
    assert served.half.commands == [*ECHOED[:2], ("trailers", 1, trailers(error))]
    assert served.failures == [error]
    assert (served.half.released, len(served.calls)) == ([1], 0)


async def test_a_handler_that_cancels_itself_ends_its_call() -> None:
    async def answer(_call: Call) -> None:
        raise asyncio.CancelledError

    served = Served(answer)
    served.ask(HELLO)
    assert served.status is StatusCode.CANCELLED
    assert served.half.commands[0][0] == "only trailers"


async def test_an_exit_in_a_handler_is_no_answer() -> None:
    async def answer(_call: Call) -> None:
        raise SystemExit

    served = Served(answer)
    with pytest.raises(SystemExit):
        served.ask(HELLO)


# --- cancellation --------------------------------------------------------------------------------

RESET = StreamReset(1, ErrorCode.CANCEL, by_client=True)


async def test_a_reset_ends_a_request_that_is_incomplete() -> None:
    served = Served(echo, half_request=AT_ONCE)
    served.ask(HELLO[:6], ended=False)
    served.take(RESET)
    assert (served.half.released, served.status) == ([1], StatusCode.CANCELLED)
    assert served.calls.unanswered == served.calls.held_bytes == 0
    await settle()
    assert served.half.commands == [("consume", 1, 6)]


async def test_a_reset_cancels_the_handler_and_nothing_more_is_sent() -> None:
    paused = Paused()
    served = Served(paused)
    served.ask(HELLO)
    await settle()
    served.take(RESET)
    await served.until_ended()
    assert (paused.cancelled, served.status) == (1, StatusCode.CANCELLED)
    assert served.half.commands == ECHOED[:2]
    assert not served.failures


async def test_a_reset_in_the_turn_of_the_request_cancels_the_handler_properly() -> None:
    """The Task has made no step of its own then."""
    paused = Paused()
    served = Served(paused)
    served.ask(HELLO)
    served.take(RESET)
    await served.until_ended()
    assert paused.cancelled == 1


async def test_a_call_counts_after_a_reset_until_its_handler_has_ended() -> None:
    ready = asyncio.Event()

    async def answer(call: Call) -> None:
        try:
            await wait_forever(call)
        finally:
            await ready.wait()

    served = Served(answer)
    served.ask(HELLO)
    served.take(RESET)
    await settle()
    assert (len(served.calls), served.half.released, served.ends) == (1, [], [])
    ready.set()
    await served.until_ended()
    assert (len(served.calls), served.half.released) == (0, [1])


async def test_a_handler_that_ignores_the_reset_sends_nothing() -> None:
    async def answer(call: Call) -> None:
        with suppress(asyncio.CancelledError):
            await wait_forever(call)
        await call.send(HELLO)

    served = Served(answer)
    served.ask(HELLO)
    served.take(RESET)
    await served.until_ended()
    [error] = served.failures
    assert "hung up" in str(error)
    assert (served.half.commands, served.status) == ([], StatusCode.CANCELLED)


async def test_a_handler_that_fails_after_the_reset_is_noted_and_sends_nothing() -> None:
    async def answer(call: Call) -> None:
        try:
            await wait_forever(call)
        finally:
            raise ZeroDivisionError

    served = Served(answer)
    served.ask(HELLO)
    served.take(RESET)
    await served.until_ended()
    assert [type(each) for each in served.failures] == [ZeroDivisionError]
    assert served.half.commands == []


@pytest.mark.parametrize(
    ("reset", "code"),
    [
        (ErrorCode.PROTOCOL_ERROR, StatusCode.INTERNAL),
        (ErrorCode.FLOW_CONTROL_ERROR, StatusCode.INTERNAL),
        (ErrorCode.ENHANCE_YOUR_CALM, StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_stream_that_the_half_resets_is_noted_by_its_path_if_it_has_one(
    reset: ErrorCode, code: StatusCode
) -> None:
    served = Served(wait_forever)
    served.ask(HELLO)
    served.take(StreamReset(1, reset, by_client=False), StreamReset(3, reset, by_client=False))
    await served.until_ended()
    assert served.paths_of_failures == ["/test.Echo/Say", "(none)"]
    assert len({str(error) for error in served.failures}) == 1
    assert served.calls.begun == 2, "a connection with such a call is none without a call"
    assert (served.status, served.half.commands, len(served.calls)) == (code, [], 0)


async def test_a_stream_too_many_breaks_no_rule() -> None:
    served = Served(echo)
    served.take(StreamReset(3, ErrorCode.REFUSED_STREAM, by_client=False))
    assert not served.failures


async def test_the_end_of_the_connection_cancels_all_calls_without_a_command() -> None:
    served = Served(wait_forever)
    served.ask(HELLO)
    served.take(RequestStarted(3, request_headers({}), ended=False))
    commands = len(served.half.commands)
    served.calls.close()
    await settle()
    served.take(RequestStarted(5, request_headers({}), ended=False))
    assert [code for _, code in served.ends] == [StatusCode.CANCELLED] * 2
    assert len(served.half.commands) == commands
    assert (len(served.calls), served.half.released, served.flushes) == (0, [], 0)


async def test_the_end_of_the_connection_in_the_first_step_cancels_the_handler() -> None:
    async def answer(call: Call) -> None:
        served.calls.close()
        await wait_forever(call)

    served = Served(answer)
    served.ask(HELLO)
    await served.until_ended()
    assert (served.status, len(served.calls)) == (StatusCode.CANCELLED, 0)


async def test_a_handler_may_end_in_the_step_that_ends_the_connection() -> None:
    async def answer(_call: Call) -> None:
        served.calls.close()

    served = Served(answer)
    served.ask(HELLO)
    assert (served.status, len(served.calls)) == (StatusCode.CANCELLED, 0)


async def test_a_task_for_which_a_handler_waits_ends_before_the_handler() -> None:
    ends: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            ends.append("task")

    async def answer(_call: Call) -> None:
        try:
            await asyncio.get_running_loop().create_task(work())
        finally:
            ends.append("handler")

    served = Served(answer)
    served.ask(HELLO)
    await settle()
    served.take(RESET)
    await served.until_ended()
    assert ends == ["task", "handler"]


@pytest.mark.parametrize("kind", [asyncio.Future, type("Derived", (asyncio.Future,), {})])
async def test_a_reset_together_with_the_end_of_a_wait_interrupts_the_handler_once(
    kind: type[asyncio.Future[None]],
) -> None:
    waited, other = kind(), asyncio.get_running_loop().create_future()
    cancelled: list[Call] = []

    async def answer(call: Call) -> None:
        try:
            await waited
        except asyncio.CancelledError:
            cancelled.append(call)
        await other

    served = Served(answer)
    served.ask(HELLO)
    waited.set_result(None)
    served.take(RESET)
    await settle()
    assert (len(cancelled), len(served.calls)) == (1, 1)
    other.set_result(None)
    await settle()
    assert (served.status, len(served.calls)) == (StatusCode.CANCELLED, 0)


async def test_a_call_that_ends_with_another_of_its_connection_ends_once() -> None:
    async def answer(call: Call) -> None:
        try:
            await wait_forever(call)
        finally:
            served.take(StreamReset(1, 0, by_client=True), StreamReset(3, 0, by_client=True))

    served = Served(answer)
    for stream in (1, 3):
        served.take(
            RequestStarted(stream, request_headers({}), ended=False),
            BodyReceived(stream, HELLO, ended=True),
        )
    served.calls.close()
    assert (len(served.ends), len(served.calls)) == (2, 0)


# --- deadlines -----------------------------------------------------------------------------------

EXPIRED = StatusError(StatusCode.DEADLINE_EXCEEDED, "the deadline of the call has passed")


async def test_a_deadline_that_has_passed_is_answered_without_the_handler() -> None:
    served = Served(echo)
    served.ask(HELLO, grpc_timeout=b"0n")
    assert served.half.commands == [("only trailers", 1, trailers_only(EXPIRED))]
    assert (served.status, len(served.calls)) == (StatusCode.DEADLINE_EXCEEDED, 0)
    assert [str(error) for error in served.failures] == [str(EXPIRED)]


async def test_a_deadline_ends_an_open_stream_and_its_handler() -> None:
    paused = Paused()
    served = Served(paused)
    served.ask(HELLO, grpc_timeout=b"1u")
    await served.until_ended()
    assert served.half.commands == [*ECHOED[:2], ("trailers", 1, trailers(EXPIRED))]
    assert (served.status, paused.cancelled) == (StatusCode.DEADLINE_EXCEEDED, 1)
    assert served.flushes
    assert not served.failures, "the client planned it"


async def test_a_deadline_ends_half_a_request() -> None:
    served = Served(echo, half_request=SAFETY_SECONDS)
    served.ask(HELLO[:6], ended=False, grpc_timeout=b"1u")
    await served.until_ended()
    assert served.half.commands[1:] == [("only trailers", 1, trailers_only(EXPIRED))]
    assert served.status is StatusCode.DEADLINE_EXCEEDED


async def test_a_deadline_resets_a_stream_whose_response_is_not_taken() -> None:
    served = Served(Paused())
    served.half.blocked.add(1)
    served.ask(HELLO, grpc_timeout=b"1u")
    await served.until_ended()
    assert served.half.commands == [*ECHOED[:2], ("reset", 1, ErrorCode.CANCEL)]
    assert served.status is StatusCode.DEADLINE_EXCEEDED


async def test_a_deadline_has_no_effect_on_a_call_that_ended_before() -> None:
    paused = Paused()
    served = Served(paused)
    served.ask(HELLO, grpc_timeout=b"1S")
    paused.go.set()
    await served.until_ended()
    assert served.status is StatusCode.OK


async def test_a_deadline_far_away_is_no_error() -> None:
    served = Served(wait_forever)
    served.ask(HELLO, grpc_timeout=b"99999999H")
    await settle()
    assert not served.ends
    served.calls.close()


# --- flow control --------------------------------------------------------------------------------


async def test_a_response_waits_for_flow_control() -> None:
    served = Served(echo)
    served.half.blocked.add(1)
    served.ask(HELLO)
    await settle()
    assert served.half.commands == ECHOED[:2]
    served.take(StreamDrained(1))
    await served.until_ended()
    assert served.half.commands == ECHOED


async def test_a_client_that_does_not_take_its_response_is_cut() -> None:
    served = Served(echo, untaken=AT_ONCE)
    served.half.blocked.add(1)
    served.ask(HELLO)
    await served.until_ended()
    assert served.half.commands == [*ECHOED[:2], ("reset", 1, ErrorCode.CANCEL)]
    [error] = served.failures
    assert isinstance(error, StatusError)
    assert (len(served.calls), served.status) == (0, StatusCode.CANCELLED)
    assert error.code is StatusCode.CANCELLED


async def test_a_late_drain_and_a_second_one_have_no_effect() -> None:
    served = Served(Paused())
    served.half.blocked.add(1)
    served.ask(HELLO)
    served.take(StreamDrained(1), StreamDrained(1))
    await settle()
    served.take(StreamDrained(1))
    assert len(served.calls) == 1
    served.calls.close()
    await settle()


# --- streams of requests -------------------------------------------------------------------------


def bidirectional(handler: Handler = echo_each, half_request: float = NEVER) -> Served:
    return Served(handler, streams_requests=True, half_request=half_request)


@pytest.mark.parametrize("bodies", [[HELLO[:3]], [HELLO[:6], HELLO[6:] + WORLD[:9]]])
async def test_half_a_message_of_a_bidirectional_call_is_refused_after_its_time(
    bodies: list[bytes],
) -> None:
    served = bidirectional(half_request=AT_ONCE)
    served.ask(*bodies, ended=False)
    await served.until_ended()
    assert served.status is StatusCode.UNAVAILABLE
    assert served.calls.held_bytes == 0
    [error] = served.failures
    assert "not complete within" in str(error)


async def test_half_a_message_has_one_time_however_many_parts_come() -> None:
    served = bidirectional(half_request=AT_ONCE)
    served.turns_behind = 3
    served.ask(HELLO[:1], ended=False)
    for byte in HELLO[1:-1]:
        for _ in range(4):
            await asyncio.sleep(0)
        served.take(BodyReceived(1, bytes([byte]), ended=False))
    assert served.status is StatusCode.UNAVAILABLE
    assert served.turns_behind < 0


async def test_a_bidirectional_call_without_half_a_message_has_no_time() -> None:
    served = bidirectional(half_request=AT_ONCE)
    served.ask(HELLO, ended=False)
    await settle()
    assert not served.ends
    served.take(BodyReceived(1, WORLD[:4], ended=False), BodyReceived(1, WORLD[4:], ended=False))
    await settle()
    assert not served.ends
    served.take(BodyReceived(1, b"", ended=True))
    await served.until_ended()
    assert served.status is StatusCode.OK


async def test_a_bidirectional_call_answers_each_message_as_it_comes() -> None:
    served = bidirectional()
    served.take(RequestStarted(1, request_headers({}), ended=False))
    assert served.half.commands == []
    served.take(BodyReceived(1, HELLO, ended=False))
    await settle()
    assert served.half.commands[-2:] == ECHOED[:2]
    served.take(BodyReceived(1, WORLD[:3], ended=False))
    await settle()
    assert served.half.commands[-1] == ("consume", 1, 3)
    served.take(BodyReceived(1, WORLD[3:] + HELLO, ended=True))
    await served.until_ended()
    assert [each[2] for each in served.half.commands if each[0] == "data"] == [HELLO, WORLD, HELLO]
    assert served.status is StatusCode.OK
    assert served.calls.held_bytes == 0


async def test_a_bidirectional_call_may_have_no_message() -> None:
    served = bidirectional()
    served.ask()
    assert served.half.commands == [ECHOED[0], ECHOED[2]]


async def test_a_client_may_send_more_only_as_the_handler_takes_messages() -> None:
    go = asyncio.Event()

    async def slow(call: Call) -> None:
        async for _ in call.requests():
            await go.wait()

    served = bidirectional(slow)
    served.take(RequestStarted(1, request_headers({}), ended=False))
    served.take(BodyReceived(1, HELLO * 3, ended=False))
    await settle()
    assert served.half.commands == [("consume", 1, len(HELLO))]
    assert served.calls.held_bytes == 2 * len(HELLO)
    served.take(BodyReceived(1, HELLO, ended=False))
    go.set()
    await settle()
    assert served.half.commands == [("consume", 1, len(HELLO))] * 4
    assert served.calls.held_bytes == 0
    served.calls.close()
    await settle()


async def test_every_byte_of_a_message_in_parts_is_allowed_once() -> None:
    served = bidirectional()
    served.take(RequestStarted(1, request_headers({}), ended=False))
    for byte in HELLO + WORLD:
        served.take(BodyReceived(1, bytes((byte,)), ended=False))
        await settle()
    consumed = [each[2] for each in served.half.commands if each[0] == "consume"]
    assert sum(cast("list[int]", consumed)) == len(HELLO + WORLD)
    served.calls.close()
    await settle()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (HELLO + HELLO[:6], StatusCode.INTERNAL),
        (HELLO + frame_message(b"x" * (LIMIT + 1)), StatusCode.RESOURCE_EXHAUSTED),
        (HELLO + b"\1" + HELLO[1:], StatusCode.INTERNAL),
    ],
)
async def test_a_bad_message_ends_a_bidirectional_call_behind_its_good_ones(
    body: bytes, code: StatusCode
) -> None:
    served = bidirectional()
    served.ask(body)
    await served.until_ended()
    assert served.half.commands[:2] == ECHOED[:2]
    assert served.half.commands[-1][0] == "trailers"
    assert (served.status, served.calls.held_bytes) == (code, 0)


async def test_messages_that_the_handler_leaves_are_not_held_after_it() -> None:
    async def first_only(call: Call) -> None:
        async for message in call.requests():
            await call.send(frame_message(message))
            return

    served = bidirectional(first_only)
    served.ask(HELLO * 3, ended=False)
    await served.until_ended()
    assert served.half.commands[-1] == ECHOED[2]
    assert (served.calls.held_bytes, served.status) == (0, StatusCode.OK)


async def test_a_reset_ends_the_wait_for_a_message() -> None:
    served = bidirectional()
    served.take(RequestStarted(1, request_headers({}), ended=False))
    await settle()
    served.take(RESET, BodyReceived(1, HELLO, ended=False))
    await served.until_ended()
    assert (served.status, served.calls.held_bytes) == (StatusCode.CANCELLED, 0)


async def test_a_method_with_one_request_has_no_requests_to_iterate() -> None:
    async def answer(call: Call) -> None:
        assert [each async for each in call.requests()] == []

    served = Served(answer)
    served.ask(HELLO)
    assert served.status is StatusCode.OK
