"""Clients that begin something and do not go on: bounds in seconds, and bounded log lines."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.support.agent import RunningAgent, entry_for_me
from tests.support.rules import CHECK, call, opening
from tests.support.wire import (
    DEFAULT_WINDOW,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    WIDEST,
    Wire,
    data,
    frame,
    message,
    plain_block,
    request_fields,
    started,
    window_update,
)

UNAVAILABLE = 14
CANCEL = 8
# Longer than the longest bound.
PATIENCE_SECONDS = 40.0
LONGEST_LINE = 600
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
FILE_OF_REFLECTION = message(b"\x22\x23grpc.reflection.v1.ServerReflection")

pytestmark = pytest.mark.system


@pytest.fixture
def agent() -> Iterator[RunningAgent]:
    agent = RunningAgent(entry_for_me(), config="limits: {requests_per_second: 100000}")
    yield agent
    agent.close()


def test_slow_clients_are_cut_and_delay_nobody(agent: RunningAgent) -> None:
    """All at once: the test takes as long as the longest bound."""
    with ExitStack() as stack:

        def client(*pairs: tuple[int, int]) -> Wire:
            wire = stack.enter_context(started(str(agent.socket), *pairs))
            wire.barrier()
            wire.send(call(wire))
            assert wire.until_ended(1).grpc_status == 0
            wire.sock.settimeout(PATIENCE_SECONDS)
            return wire

        request, part, block, window = (
            client(),
            client(),
            client(),
            client((INITIAL_WINDOW_SIZE, 7)),
        )
        unread = client((INITIAL_WINDOW_SIZE, WIDEST))
        request.send(opening(request, 3), data(3, message(b"any")[:6]))
        part.send(frame(0x42, payload=bytes(1000))[:500])
        block.send(frame(HEADERS, 0, 3, plain_block(request_fields(CHECK))))
        window.send(opening(window, 3, path=REFLECTION), data(3, FILE_OF_REFLECTION))
        leave_unread(unread)
        with started(str(agent.socket)) as other:
            other.send(call(other))
            assert other.until_ended(1).grpc_status == 0
        wait_until_hung_up(unread)
        part.until_closed()
        block.until_closed()
        assert request.until_ended(3).grpc_status == UNAVAILABLE
        assert request.barrier()
        assert window.until_ended(3).reset == CANCEL
        assert window.barrier()
    assert max(len(line) for line in agent.log.splitlines()) < LONGEST_LINE


def leave_unread(wire: Wire) -> None:
    """Ask for megabytes, within the windows, and read nothing."""
    wire.send(window_update(0, WIDEST - DEFAULT_WINDOW))
    asked = FILE_OF_REFLECTION * 100
    calls = (opening(wire, n, path=REFLECTION) + data(n, asked, end=True) for n in range(3, 150, 2))
    wire.sock.setblocking(False)
    with suppress(BlockingIOError):
        for each in calls:
            wire.sock.sendall(each)


def wait_until_hung_up(wire: Wire) -> None:
    """Wait without reading; poll(2) always reports a hang-up."""
    end = select.poll()
    end.register(wire.sock, 0)
    assert end.poll(PATIENCE_SECONDS * 1000)


@pytest.mark.parametrize("count", [1, 20])
def test_bad_connections_have_one_bounded_log_line_each(agent: RunningAgent, count: int) -> None:
    """What the client wrote is in none of them."""
    for _ in range(count):
        with started(str(agent.socket)) as wire:
            wire.send(frame(0x6, payload=b"evil\x1b[2J"[:7]))
            wire.until_closed()
    agent.wait_for_log("connection refused")
    with started(str(agent.socket)) as wire:
        wire.send(call(wire))
        assert wire.until_ended(1).grpc_status == 0
    lines = [line for line in agent.log.splitlines() if "connection" in line]
    assert 0 < len(lines) <= count
    assert all(len(line) < LONGEST_LINE and "evil" not in line for line in lines)
