"""One connection: its turns, its bounds, and the reasons of its end."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import h2.events
import pytest

from agent.errors import PeerError, PeerGoneError
from agent.kernel import caller as kernel_caller
from agent.kernel.caller import Caller
from agent.kernel.credentials import read_peer
from agent.kernel.process import ProcessHandle
from agent.kernel.sender import receive
from agent.limits.fair_queue import READ_BYTES, SMALL_READ_BYTES
from agent.transport.connection import COUNTED_BYTES, ConnectionTimes
from agent.transport.http2_server import Http2Server
from tests.support.abuse import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    call_headers,
    frame,
)
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import settle
from tests.support.h2_engine import H2Engine
from tests.support.running_gate import HALF, Client, RunningGate, descriptors, running_gate, until

HELLO = PREFACE + frame(SETTINGS)
HUNDRED_MILLISECONDS = 0.1


class Request:
    """An object that a call holds."""


class SilentClient(Client):
    """A client that answers no PING, and keeps their payloads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.pings: list[bytes] = []

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.PingReceived) and event.ping_data is not None:
            self.pings.append(event.ping_data)
        super()._take(event)

    def flush(self) -> None:
        sent = self.http.data_to_send()
        for payload in self.pings:
            sent = sent.replace(frame(PING, 1, 0, payload), b"")
        self.writer.write(sent)


async def silent_client(running: RunningGate) -> SilentClient:
    client = SilentClient(*await running.connect())
    client.start()
    return client


@pytest.fixture(autouse=True, params=[Http2Server, H2Engine])
def half(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test over the agent's half, and over the h2 library behind the same Protocol."""
    HALF.make = request.param
    yield
    HALF.make = Http2Server


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningGate]:
    async with running_gate(tmp_path) as running:
        yield running


def half_a_request(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, call_headers(path="/t/Echo"))


def refuse(_sock: socket.socket) -> Caller:
    raise PeerError("cannot be named")


async def is_cut(reader: asyncio.StreamReader) -> bytes:
    """Wait for the end of a connection, and return what came until then."""
    arrived = b""
    async with asyncio.timeout(SAFETY_SECONDS):
        with suppress(ConnectionError):
            while chunk := await reader.read(65536):
                arrived += chunk
    return arrived


# --- calls ----------------------------------------------------------------------------------------


async def test_calls_of_an_unidentified_caller_are_refused(running: RunningGate) -> None:
    running.gate.admission.identify_peer = refuse
    client = await running.client()
    assert (await client.ended(client.call("/t/Who", b""))).details == "cannot be named"
    client.close()
    await until(lambda: len(running.gate) == 0)
    assert not running.lines.lines, "the refused call has its own line"


async def test_refused_calls_of_an_unidentified_caller_use_no_memory(running: RunningGate) -> None:
    running.gate.admission.identify_peer = refuse
    client = await running.client()
    await client.ended(client.call("/t/Who", b""))
    [connection] = running.connections()
    kept: list[weakref.ref[Request]] = []

    def call() -> None:
        request = Request()
        kept.append(weakref.ref(request))
        with suppress(PeerError):
            connection.caller()

    for _ in range(10):
        call()
    assert sum(request() is not None for request in kept) <= 1, "the last one at most"
    client.close()


async def test_each_call_asks_the_kernel_again_for_its_caller(
    running: RunningGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"SO_PEERCRED": 0, "pidfd": 0}
    is_alive = ProcessHandle.is_alive

    def count_peer(sock: socket.socket) -> tuple[int, int, int]:
        asked["SO_PEERCRED"] += 1
        return read_peer(sock)

    def count_polls(process: ProcessHandle) -> bool:
        asked["pidfd"] += 1
        return is_alive(process)

    client, _ = await running.caller()
    monkeypatch.setattr(kernel_caller, "read_peer", count_peer)
    monkeypatch.setattr(ProcessHandle, "is_alive", count_polls)
    streams = [client.call("/t/Who", b"") for _ in range(20)]
    for stream in streams:
        await client.answer(stream)
    assert asked["SO_PEERCRED"] == 20
    assert asked["pidfd"] >= 20
    client.close()


async def test_a_call_is_refused_once_the_kernel_names_another_peer(
    running: RunningGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, caller = await running.caller()
    at_connect = caller.credentials
    changed = (at_connect.pid, at_connect.uid + 1, at_connect.gid)
    monkeypatch.setattr(kernel_caller, "read_peer", lambda _sock: changed)
    call = await client.ended(client.call("/t/Who", b""))
    assert call.details == "the kernel names another peer than when the connection was accepted"
    client.close()


async def test_a_client_that_hangs_up_cancels_its_calls(running: RunningGate) -> None:
    client = await running.client()
    for number in range(3):
        await client.answer(client.call("/t/Open", str(number).encode()))
    assert running.handlers.open == 3
    client.close()
    await until(lambda: running.handlers.open == 0 and len(running.gate) == 0)


# --- silence and slowness -------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", HELLO], ids=["nothing", "no request"])
async def test_a_connection_without_a_request_is_closed_after_the_timeout(
    tmp_path: Path, said: bytes
) -> None:
    async with running_gate(tmp_path, times=ConnectionTimes(first_request=0.01)) as running:
        reader, writer = await running.connect()
        writer.write(said)
        await is_cut(reader)
        [line] = running.lines.of("connection ended without a call")
        assert line["pid"] == os.getpid()
        assert line["reason"] == "no request within 0.01 s"
        assert running.refusals() == {'vouchd_refusals_total{reason="silent"}': 1}
        writer.close()


async def test_a_connection_may_be_silent_after_its_first_request(tmp_path: Path) -> None:
    async with running_gate(tmp_path, times=ConnectionTimes(first_request=0.05)) as running:
        client, _ = await running.caller()
        later, silent = await running.connect()
        await is_cut(later)
        silent.close()
        assert await client.answer(client.call("/t/Echo", b"x")) == b"x"
        client.close()


@pytest.mark.parametrize(
    "half",
    [
        frame(DATA, 0, 1, bytes(100))[:50],
        frame(PING, 0, 0, bytes(8))[:5],
        frame(HEADERS, 0, 3, call_headers()),
        frame(HEADERS, 0, 3, call_headers()) + frame(CONTINUATION, 0, 3),
    ],
    ids=["data", "frame header", "header block", "continued"],
)
async def test_half_a_frame_or_header_block_ends_the_connection_after_a_while(
    tmp_path: Path, half: bytes
) -> None:
    async with running_gate(tmp_path, times=ConnectionTimes(half_frame=0.02)) as running:
        reader, writer = await running.connect()
        writer.write(HELLO + half_a_request(1) + half)
        await is_cut(reader)
        [line] = running.lines.of("connection refused")
        assert line["reason"] == "half a frame or header block for 0.02 s"
        assert running.refusals() == {'vouchd_refusals_total{reason="slow"}': 1}
        writer.close()


async def test_a_frame_that_trickles_in_ends_the_connection_all_the_same(tmp_path: Path) -> None:
    async with running_gate(tmp_path, times=ConnectionTimes(half_frame=0.05)) as running:
        reader, writer = await running.connect()
        writer.write(HELLO + half_a_request(1))
        cut = asyncio.get_running_loop().create_task(is_cut(reader))
        for byte in frame(DATA, 0, 1, bytes(16_000)):
            if cut.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        await cut
        assert running.refusals() == {'vouchd_refusals_total{reason="slow"}': 1}
        writer.close()


async def test_whole_frames_that_end_in_parts_are_not_slow(tmp_path: Path) -> None:
    """Each read may end within a frame, as long as each frame ends soon."""
    async with running_gate(tmp_path, times=ConnectionTimes(half_frame=0.05)) as running:
        _reader, writer = await running.connect()
        prefix = frame(DATA, 0, 1, b"\0" + (1000).to_bytes(4, "big"))
        writer.write(HELLO + half_a_request(1) + prefix)
        part = frame(DATA, 0, 1, bytes(10))
        writer.write(part[:12])
        for _ in range(20):
            writer.write(part[12:] + part[:12])
            await asyncio.sleep(0.01)
        assert len(running.gate) == 1
        writer.close()


# --- quotas ---------------------------------------------------------------------------------------


async def test_a_connection_that_hangs_up_in_the_queue_leaves_no_descriptor(tmp_path: Path) -> None:
    async with running_gate(tmp_path, rate=2) as running:
        before = descriptors()
        for _ in range(100):  # its share is three connects
            _, writer = await running.connect()
            writer.close()
        await until(lambda: len(running.gate) == 0)
        await until(lambda: descriptors() <= before)


async def test_half_requests_count_against_the_quota_of_calls(tmp_path: Path) -> None:
    async with running_gate(tmp_path, per_user=8) as running:  # 8 streams and 8 attestations
        said = HELLO + b"".join(map(half_a_request, range(1, 17, 2)))
        reader, writer = await running.connect()
        writer.write(said)
        await until(lambda: sum(len(each.calls) for each in running.connections()) == 8)
        writer.write(half_a_request(17))
        await is_cut(reader)
        [line] = running.lines.of("connection refused")
        assert line["reason"].startswith("too many calls of this user in this cgroup")
        assert line["pid"] == os.getpid()
        reason = "calls_of_user_in_cgroup"
        assert running.refusals() == {f'vouchd_refusals_total{{reason="{reason}"}}': 1}
        writer.close()
        # Its end released the quota.
        reader, writer = await running.connect()
        writer.write(said)
        await until(lambda: sum(len(each.calls) for each in running.connections()) == 8)
        writer.close()


@pytest.mark.parametrize("half", [Http2Server], indirect=True)  # the h2 library differs
async def test_a_header_block_without_end_closes_the_connection(running: RunningGate) -> None:
    reader, writer = await running.connect()
    writer.write(HELLO + frame(HEADERS, 0, 1, b"\x82"))
    for _ in range(3000):
        writer.write(frame(CONTINUATION, 0, 1))
    await is_cut(reader)
    [line] = running.lines.of("connection refused")
    assert "ENHANCE_YOUR_CALM" in line["reason"]
    assert line["pid"] == os.getpid()
    assert running.refusals() == {'vouchd_refusals_total{reason="excess"}': 1}
    writer.close()


async def test_a_broken_rule_of_http2_gets_goaway_and_a_line(running: RunningGate) -> None:
    reader, writer = await running.connect()
    writer.write(HELLO + frame(DATA, 0, 1, b"x"))
    arrived = await is_cut(reader)
    assert (1).to_bytes(4, "big") in arrived.rpartition(b"\x07\0\0\0\0\0")[2], "PROTOCOL_ERROR"
    [line] = running.lines.of("connection refused")
    assert line["reason"].endswith("(PROTOCOL_ERROR)")
    assert running.refusals() == {'vouchd_refusals_total{reason="protocol"}': 1}
    writer.close()


async def test_bytes_that_the_agent_holds_count_against_a_quota(tmp_path: Path) -> None:
    async with running_gate(tmp_path, buffer_bytes=4 * COUNTED_BYTES) as running:
        quota = running.gate.admission.quotas._buffer_bytes
        part = bytes(COUNTED_BYTES)
        reader, writer = await running.connect()
        message = b"\0" + (30_000).to_bytes(4, "big")
        writer.write(HELLO + half_a_request(1) + frame(DATA, 0, 1, message + part))
        await until(lambda: quota._count == COUNTED_BYTES)
        writer.write(frame(DATA, 0, 1, part))
        await until(lambda: quota._count == 2 * COUNTED_BYTES)
        writer.write(frame(DATA, 0, 1, part))
        await is_cut(reader)
        [line] = running.lines.of("connection refused")
        assert line["reason"].startswith(
            "too many bytes of unfinished requests and unread responses of this user in this cgroup"
        )
        reason = "buffer_bytes_of_user_in_cgroup"
        assert running.refusals() == {f'vouchd_refusals_total{{reason="{reason}"}}': 1}
        assert quota._count == 0
        writer.close()


async def test_requests_over_the_rate_wait_in_the_socket(tmp_path: Path) -> None:
    async with running_gate(tmp_path, rate=2) as running:
        client, caller = await running.caller()
        lane = running.gate.admission._fair_queue.lane(caller.account)
        before = len(running.handlers.callers)
        streams = [client.call("/t/Who", b"") for _ in range(50)]
        await until(lambda: len(running.handlers.callers) > before)
        [connection] = running.connections()
        await until(lambda: connection._waits)
        assert len(running.handlers.callers) - before <= READ_BYTES // 20
        assert lane._seconds_to_wait() > 0
        assert streams
        client.close()
        await until(lambda: len(running.gate) == 0)  # its end is noticed while it waits


@pytest.mark.parametrize("half", [Http2Server], indirect=True)  # the h2 library differs
async def test_rest_of_a_body_is_read_frame_by_frame(
    running: RunningGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read costs a request of the smallest kind, whatever it reads."""
    sizes: list[int] = []

    def noted(sock: socket.socket, limit: int, caller: Caller) -> bytes:
        chunk = receive(sock, limit, caller)
        sizes.append(len(chunk))
        return chunk

    monkeypatch.setattr("agent.transport.connection.receive", noted)
    client, _ = await running.caller()
    sizes.clear()
    body = bytes(16_000)
    assert await client.answer(client.call("/t/Echo", body)) == body
    assert sum(sizes) > len(body)
    reads = len([size for size in sizes if size > SMALL_READ_BYTES])
    assert reads <= 2
    sizes.clear()
    for _ in range(100):
        client.call("/t/Who", b"")
    await until(lambda: sum(sizes) >= 100 * 20)
    assert max(sizes) <= READ_BYTES
    client.close()


# --- clients that do not read ---------------------------------------------------------------------


LARGE = 1 << 20


def takes_all(client: Client) -> None:
    """Open the windows of HTTP/2, so that the socket alone holds the agent back."""
    client.http.increment_flow_control_window(LARGE * 64)
    client.http.update_settings({4: LARGE * 2})
    client.flush()


async def test_a_client_that_does_not_read_is_cut_after_a_while(tmp_path: Path) -> None:
    async with running_gate(tmp_path, times=ConnectionTimes(unread=0.05)) as running:
        client, _ = await running.caller()
        takes_all(client)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.call("/t/Large", str(LARGE).encode())
        await until(lambda: running.lines.of("connection refused"))
        [line] = running.lines.of("connection refused")
        assert line["reason"] == "the client did not read its responses for 0.05 s"
        assert running.refusals() == {'vouchd_refusals_total{reason="slow"}': 1}
        client.close()


async def test_a_client_that_reads_late_gets_every_byte(running: RunningGate) -> None:
    client, _ = await running.caller()
    takes_all(client)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    streams = [client.call("/t/Large", str(LARGE).encode()) for _ in range(3)]
    [connection] = running.connections()
    await until(lambda: connection._unsent)
    assert len(connection._unsent) < LARGE / 4, "flow control holds the rest"
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for stream in streams:
        assert len(await client.answer(stream)) == LARGE
    assert connection._held == 0
    client.close()


# --- the challenge --------------------------------------------------------------------------------


async def test_a_caller_that_answers_the_ping_is_proven(running: RunningGate) -> None:
    client = await running.client()
    assert await client.answer(client.call("/t/Prove", b"")) == b"proven"
    assert await client.answer(client.call("/t/Prove", b"")) == b"proven"
    client.close()


async def test_an_answer_that_was_queued_before_the_question_proves_nothing(
    running: RunningGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process queues it that writes the payload into a shared page later (sendfile(2))."""
    payload = bytes(range(8))
    monkeypatch.setattr(secrets, "token_bytes", lambda _length: payload)
    client = await silent_client(running)
    await client.answer(client.call("/t/Echo", b""))
    early = frame(PING, 1, 0, payload)
    stream = client.call("/t/Prove", b"")
    client.writer.write(early * 100)
    while not client.pings:
        await client.take()
    await settle()
    assert not client.calls[stream].messages
    assert client.calls[stream].status is None
    client.writer.write(early)
    assert await client.answer(stream) == b"proven", "an answer behind the question counts"
    client.close()


async def test_the_end_of_an_answer_must_not_hold_what_was_queued_before(
    running: RunningGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that follows echoes the payload; the frame header was queued before."""
    payload = bytes(range(8))
    monkeypatch.setattr(secrets, "token_bytes", lambda _length: payload)
    client = await silent_client(running)
    await client.answer(client.call("/t/Echo", b""))
    stream = client.call("/t/Prove", b"")
    client.writer.write(frame(PING, 1, 0, payload)[:9])
    while not client.pings:
        await client.take()
    client.writer.write(payload)
    await settle()
    assert not client.calls[stream].messages
    client.close()


async def test_a_caller_that_hangs_up_instead_fails_the_proof(running: RunningGate) -> None:
    client = await silent_client(running)
    await client.answer(client.call("/t/Who", b""))
    caller = running.handlers.callers[-1]

    async def hang_up() -> None:
        await client.take()
        client.close()

    async with asyncio.timeout(SAFETY_SECONDS):
        outcome, _ = await asyncio.gather(
            running.gate.prove_sender(caller), hang_up(), return_exceptions=True
        )
    assert isinstance(outcome, PeerGoneError)


# --- the stop -------------------------------------------------------------------------------------


NOT_YET, NO_ERROR = ((1 << 31) - 1).to_bytes(4, "big"), bytes(4)


async def test_calls_that_a_client_made_before_it_saw_the_goaway_get_their_responses(
    running: RunningGate,
) -> None:
    client = await silent_client(running)
    first = client.call("/t/Open", b"a")
    await client.answer(first)
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(running.gate.go_away(SAFETY_SECONDS))
        while not client.goaways:
            await client.take()
        assert client.goaways == [NOT_YET + NO_ERROR]
        second = client.call("/t/Open", b"b")
        client.flush()
        assert await client.answer(second) == b"b", "the call was on its way"
        assert not leaving.done(), "the client has not answered the PING behind the GOAWAY"
        for payload in client.pings:
            client.writer.write(frame(PING, 1, 0, payload))
        while len(client.goaways) < 2:
            await client.take()
        assert client.goaways[1] == second.to_bytes(4, "big") + NO_ERROR
        await leaving
        waiting = tasks.create_task(running.gate.wait_for_calls(SAFETY_SECONDS))
        await settle()
        assert not waiting.done(), "its streams are open"
        running.handlers.stop.set()
        await waiting
        for stream in (first, second):
            assert (await client.ended(stream)).details == "stopping"
    client.close()


async def test_go_away_waits_briefly_for_a_client_that_does_not_answer(tmp_path: Path) -> None:
    async with running_gate(tmp_path, times=ConnectionTimes(go_away=0.01)) as running:
        _reader, writer = await running.connect()
        await until(lambda: len(running.gate) == 1)
        async with asyncio.timeout(SAFETY_SECONDS):
            await running.gate.go_away(SAFETY_SECONDS)
        writer.close()


async def test_a_new_connection_gets_its_goaway_after_its_first_call(running: RunningGate) -> None:
    """A gRPC client that receives GOAWAY in its handshake never makes its call."""
    client = await running.client()
    await client.take()
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(running.gate.go_away(SAFETY_SECONDS))
        await settle()
        stream = client.call("/t/Echo", b"x")
        assert not client.goaways
        assert await client.answer(stream) == b"x"
        while len(client.goaways) < 2:
            await client.take()
    client.close()
