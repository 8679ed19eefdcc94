"""The half gives the same events however bytes are cut, and what the h2 library gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import h2.config
import h2.connection
import h2.events
import h2.settings
import hyperframe.frame as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transport.bounds import Bounds
from agent.transport.half import ConnectionFailed, Event, Half, RequestStarted
from agent.transport.header_blocks import indexed, literal
from agent.transport.http2_server import Http2Server
from tests.support.h2_engine import H2Engine
from tests.support.h2_sessions import changed_sessions, valid_sessions
from tests.support.half_client import END_HEADERS, REQUEST, RST_STREAM, SETTINGS, frames_of

OK = indexed(8) + literal(b"content-type", b"application/grpc")
TRAILERS = literal(b"grpc-status", b"0")
ALTSVC, OF_BLOCKS = 10, {1, 5, 9}


def plain(event: Event) -> object:
    """Return an event that compares by what it says."""
    if isinstance(event, RequestStarted):
        return (event.stream, event.headers.fields, event.ended)
    return event


@given(frames=valid_sessions() | changed_sessions(), data=st.data())
def test_any_split_of_bytes_gives_the_same_events(frames: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(frames)
    whole = Http2Server()
    expected = [plain(event) for event in whole.feed(sent, 1.0)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=40)))
    split = Http2Server()
    events = [
        plain(event)
        for start, end in pairwise([0, *cuts, len(sent)])
        for event in split.feed(sent[start:end], 1.0)
    ]
    assert events == expected
    assert split.take_output() == whole.take_output()
    assert (split.held_bytes, split.is_mid_frame) == (whole.held_bytes, whole.is_mid_frame)


@given(valid_sessions())
def test_valid_session_gives_the_events_that_h2_gives(frames: list[bytes]) -> None:
    ours, theirs = Http2Server(), H2Engine()
    for frame in frames:
        events = [plain(event) for event in ours.feed(frame, 1.0)]
        assert events == [plain(event) for event in theirs.feed(frame, 1.0)]
        assert not any(isinstance(event, ConnectionFailed) for event in events)


@settings(max_examples=300)
@given(changed_sessions())
def test_changed_session_gives_the_same_events_or_both_halves_refuse(frames: list[bytes]) -> None:
    ours, theirs = Http2Server(), H2Engine()
    for half in (ours, theirs):
        half.feed(frames[0] + frames[1], 1.0)
        half.take_output()
    for frame in frames[2:]:
        events, expected = ours.feed(frame, 1.0), theirs.feed(frame, 1.0)
        refused, theirs_refused = refuses(ours), refuses(theirs)
        if refused or theirs_refused:
            assert refused == theirs_refused or h2_differs(frame, expected), (events, expected)
            return
        assert [*map(plain, events)] == [*map(plain, expected)], frame


def refuses(half: Half) -> bool:
    """Whether a half resets a stream or ends the connection now."""
    sent = frames_of(b"".join(iter(half.take_output, b"")))
    return any(isinstance(frame, hf.RstStreamFrame | hf.GoAwayFrame) for frame in sent)


def h2_differs(frame: bytes, events: Sequence[Event]) -> bool:
    """Whether h2 does not look at this frame, or refuses what a gRPC server may take."""
    kind, flags = frame[3], frame[4]
    if kind in OF_BLOCKS and not flags & END_HEADERS:
        return True  # h2 looks at a block when it is complete
    if kind == RST_STREAM:
        return True  # h2 ignores the reset of a stream that was never open
    if kind == SETTINGS:
        settings_of = [frame[at : at + 2] for at in range(9, len(frame), 6)]
        return len({*settings_of}) < len(settings_of)  # h2 looks at the last of equal settings
    return kind == ALTSVC or any(
        isinstance(event, ConnectionFailed) and "Host header" in event.reason for event in events
    )


@given(
    sizes=st.lists(st.integers(0, 90_000), min_size=1, max_size=5),
    window=st.integers(1, 100_000),
    frame_bytes=st.integers(16_384, 40_000),
    output_bytes=st.integers(1, 70_000),
    steps=st.lists(st.integers(1, 50_000), max_size=5),
)
def test_responses_reach_an_h2_client_whole(
    sizes: list[int], window: int, frame_bytes: int, output_bytes: int, steps: list[int]
) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    codes = h2.settings.SettingCodes
    client.local_settings = h2.settings.Settings(
        client=True,
        initial_values={codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame_bytes},
    )
    client.max_inbound_frame_size = frame_bytes  # h2 applies its own setting late
    client.initiate_connection()
    half = Http2Server(Bounds(output_bytes=output_bytes))
    expected: dict[int, bytes] = {}
    for number, size in enumerate(sizes):
        stream = 2 * number + 1
        client.send_headers(stream, REQUEST, end_stream=True)
        expected[stream] = bytes([65 + number]) * size
    half.feed(client.data_to_send(), 1.0)
    for stream, body in expected.items():
        half.send_headers(stream, OK)
        half.send_data(stream, body)
        half.send_trailers(stream, TRAILERS)
    received = dict.fromkeys(expected, b"")
    ended: set[int] = set()
    # Windows open by the steps drawn, and at last by as much as all responses need.
    for more in [0, *steps, sum(sizes) + 100_000]:
        if more:
            client.increment_flow_control_window(more)
            for stream in expected.keys() - ended:
                client.increment_flow_control_window(more, stream)
        half.feed(client.data_to_send(), 1.0)
        for event in client.receive_data(b"".join(iter(half.take_output, b""))):
            if isinstance(event, h2.events.DataReceived):
                received[event.stream_id or 0] += event.data or b""
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id or 0)
    assert received == expected
    assert ended == expected.keys()
    assert half.held_bytes == 0
