"""PINGs are inserted and removed between frames in any chunks; no other byte changes."""

from __future__ import annotations

from itertools import pairwise

import h2.config
import h2.connection
import h2.events
import hyperframe.frame as hf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.transport.http2 import (
    CLIENT_PREFACE_BYTES,
    MESSAGE_HEADER_BYTES,
    ClientFrames,
    Insertion,
    ping,
)

OURS = b"\x01ours\x02\x03\x04"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, payload: bytes, stream: int) -> bytes:
    header = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return header + payload


payloads = st.binary(max_size=60) | st.binary(min_size=8, max_size=8) | st.just(OURS)
# Every frame type, and unknown ones. Types of header blocks come in blocks, below.
plain_frames = st.builds(
    frame,
    st.sampled_from([0, 2, 3, 4, 6, 7, 8, 10, 200]),
    st.integers(0, 255),
    payloads,
    st.integers(0, 2**31 - 1),
).filter(lambda raw: not is_our_ack(raw))


@st.composite
def header_blocks(draw: st.DrawFn) -> bytes:
    """Draw HEADERS with CONTINUATIONs; the last frame has END_HEADERS."""
    parts = draw(st.lists(payloads, min_size=1, max_size=4))
    last = len(parts) - 1
    return b"".join(
        frame(1 if number == 0 else 9, 4 if number == last else 0, part, 1)
        for number, part in enumerate(parts)
    )


def is_our_ack(raw: bytes) -> bool:
    return raw[3] == 6 and raw[4] & 1 == 1 and raw[9:] == OURS


streams = st.lists(plain_frames | header_blocks(), max_size=12)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(number % (len(data) + 1) for number in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a != b]


cuts = st.lists(st.integers(0, 10_000), max_size=20)


@given(frames=streams, position=st.integers(0, 12), acks=st.integers(0, 2), cuts=cuts)
def test_the_expected_answer_is_removed_once_and_all_other_bytes_pass(
    frames: list[bytes], position: int, acks: int, cuts: list[int]
) -> None:
    walker = ClientFrames()
    walker.expect(OURS)
    answer = frame(6, 1, OURS, 0)
    place = position % (len(frames) + 1)
    sent = PREFACE + b"".join([*frames[:place], *([answer] * acks), *frames[place:]])
    passed = b"".join(walker.feed(chunk) for chunk in cut(sent, cuts))
    # A second answer was not expected.
    extra = [answer] * max(acks - 1, 0)
    assert passed == PREFACE + b"".join([*frames[:place], *extra, *frames[place:]])
    assert walker.answered() == ([OURS] if acks else [])
    assert walker.answered() == []


@given(frames=streams, cuts=cuts)
def test_an_answer_that_is_not_expected_passes(frames: list[bytes], cuts: list[int]) -> None:
    walker = ClientFrames()
    sent = PREFACE + b"".join([*frames, frame(6, 1, OURS, 0)])
    assert b"".join(walker.feed(chunk) for chunk in cut(sent, cuts)) == sent
    assert walker.answered() == []


@given(garbage=st.binary(max_size=400), cuts=cuts)
def test_garbage_passes_except_the_beginning_of_a_frame(garbage: bytes, cuts: list[int]) -> None:
    for walker in (ClientFrames(), Insertion()):
        passed = b"".join(walker.feed(chunk) for chunk in cut(garbage, cuts))
        assert garbage.startswith(passed)
        assert len(garbage) - len(passed) < len(ping(OURS))


@given(frames=streams, moments=st.lists(st.integers(0, 20), max_size=3), cuts=cuts)
def test_a_ping_is_inserted_only_between_frames(
    frames: list[bytes], moments: list[int], cuts: list[int]
) -> None:
    walker = Insertion()
    settings = frame(4, 0, b"", 0)
    chunks = cut(b"".join([settings, *frames]), cuts)
    received = b""
    for number, chunk in enumerate(chunks):
        for _ in range(moments.count(number)):
            received += walker.insert(ping(OURS))
        received += walker.feed(chunk)
    for _ in range(sum(moment >= len(chunks) for moment in moments)):
        received += walker.insert(ping(OURS))
    expected = [settings, *frames]
    assert received.startswith(settings), "the server's first frame is SETTINGS"
    found = 0
    for unit in split(received):
        if expected and unit == expected[0]:
            expected.pop(0)
        else:
            assert unit == ping(OURS)
            found += 1
    assert expected == []
    assert found == len(moments), "each PING was inserted"


def split(stream: bytes) -> list[bytes]:
    """Split bytes into frames, with each header block in one piece."""
    units, block = [], b""
    while stream:
        length = int.from_bytes(stream[:3], "big")
        unit, stream = stream[: 9 + length], stream[9 + length :]
        block += unit
        if unit[3] not in {1, 5, 9} or unit[4] & 4:
            units.append(block)
            block = b""
    return units


def test_a_ping_waits_for_the_servers_first_frame() -> None:
    walker = Insertion()
    assert walker.insert(ping(OURS)) == b""
    settings = frame(4, 0, b"", 0)
    assert walker.feed(settings[:5]) == b""
    assert walker.feed(settings[5:]) == settings + ping(OURS)


def test_h2_answers_the_ping_and_the_server_sees_no_answer() -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    insertion, answers = Insertion(), ClientFrames()
    client.initiate_connection()
    server.initiate_connection()
    answers.expect(OURS)
    client.receive_data(insertion.feed(server.data_to_send()) + insertion.insert(ping(OURS)))
    client.ping(b"theirown")
    events = server.receive_data(answers.feed(client.data_to_send()))
    assert answers.answered() == [OURS]
    assert not [event for event in events if isinstance(event, h2.events.PingAckReceived)]
    assert [e.ping_data for e in events if isinstance(e, h2.events.PingReceived)] == [b"theirown"]


def test_a_ping_frame_equals_that_of_hyperframe() -> None:
    assert ping(OURS) == hf.PingFrame(stream_id=0, opaque_data=OURS).serialize()
    assert len(PREFACE) == CLIENT_PREFACE_BYTES
    with pytest.raises(ValueError, match="carries 8 bytes, not 7"):
        ping(OURS[:-1])


@st.composite
def calls(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """Draw calls with other frames between; return the offset at which each call is complete.

    A call is complete with its message, in any frames, or at the end of the client's stream.
    """
    sent, beginnings = PREFACE, []
    others = st.lists(plain_frames.filter(lambda raw: raw[3] not in {0, 3}), max_size=2).map(
        b"".join
    )
    for stream in range(1, 2 * draw(st.integers(0, 5)), 2):
        data = draw(st.lists(st.binary(max_size=9), max_size=4))
        ends = draw(st.booleans())
        frames = [(1, b"x" * draw(st.integers(0, 30))), *((0, payload) for payload in data)]
        begins, received = None, 0
        for number, (kind, payload) in enumerate(frames):
            is_end = ends and number == len(frames) - 1
            sent += draw(others) + frame(kind, 4 | is_end, payload, stream)
            received += len(payload) * (kind == 0)
            if begins is None and (is_end or received >= MESSAGE_HEADER_BYTES):
                begins = len(sent)
        beginnings += [] if begins is None else [begins]
    return sent + draw(others), beginnings


@given(call=calls(), cuts=cuts)
def test_a_request_is_complete_with_its_message_and_not_earlier(
    call: tuple[bytes, list[int]], cuts: list[int]
) -> None:
    sent, beginnings = call
    walker, passed = ClientFrames(), 0
    for chunk in cut(sent, cuts):
        passed += len(walker.feed(chunk))
        assert walker.complete == sum(begins <= passed for begins in beginnings)
    assert walker.complete == len(beginnings)
