"""Limits that no setting changes, with the values that the code has."""

from __future__ import annotations

from agent.api.methods import MAX_REQUEST_BYTES
from agent.api.workload_messages import MAX_AUDIENCE_CHARS, MAX_AUDIENCES
from agent.config.files import MAX_FILE_BYTES
from agent.config.settings import LimitSettings
from agent.config.values import MAX_DURATION, format_duration
from agent.config.watch_thread import WatchTimes
from agent.config.yaml_document import MAX_DEPTH
from agent.entries.schema import MAX_DNS_NAME, MAX_HINT_BYTES
from agent.kernel.credentials import MAX_SOCKET_PATH
from agent.limits.fair_queue import BURST_SECONDS
from agent.limits.lockout import HANG_UPS_PER_SECOND, LOCKED_SECONDS
from agent.limits.memory import most_bytes_of_one_user
from agent.service.policies import limits
from agent.service.process import (
    DESCRIPTORS_PER_CONNECTION,
    MIN_ADDRESS_SPACE,
    MIN_DESCRIPTORS,
)
from agent.spiffe.lifetimes import LAST_PART, MIN_LIFETIME
from agent.svids.disk_cache import MAX_SVIDS
from agent.svids.x509 import MAX_PER_ENTRY
from agent.telemetry.log import QUEUED_LINES
from agent.transport.bounds import Bounds
from agent.transport.connection import ConnectionTimes
from agent.transport.header_blocks import MAX_DROPPED_FIELDS
from agent.transport.request_rules import MAX_FIELDS, MAX_LIST_BYTES

_WATCH = WatchTimes()
_BOUNDS, _TIMES = Bounds(), ConnectionTimes()
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

FIXED: tuple[tuple[str, str, str], ...] = (
    (
        "a request",
        f"{MAX_REQUEST_BYTES // _KIB} KiB",
        "RESOURCE_EXHAUSTED",
    ),
    (
        "headers of a request, as sent",
        f"{_BOUNDS.block_bytes // _KIB} KiB",
        "GOAWAY (ENHANCE_YOUR_CALM)",
    ),
    (
        "headers of a request, decoded",
        f"{MAX_LIST_BYTES // _KIB} KiB, {MAX_FIELDS} fields",
        "HTTP status 431",
    ),
    (
        "fields beyond these",
        f"{MAX_DROPPED_FIELDS}",
        "GOAWAY (ENHANCE_YOUR_CALM)",
    ),
    (
        "calls at once on a connection",
        f"{_BOUNDS.streams}",
        "HTTP/2 has the client wait, or REFUSED_STREAM",
    ),
    (
        "frames without a request (PING, SETTINGS, WINDOW_UPDATE and the like)",
        f"{_BOUNDS.frames:,} at once, {_BOUNDS.frames_per_second:g} per second",
        "GOAWAY (ENHANCE_YOUR_CALM)",
    ),
    (
        "the rest of a request, or of one message of several",
        f"{_TIMES.calls.half_request:g} s",
        "UNAVAILABLE",
    ),
    (
        "the rest of a frame or header block",
        f"{_TIMES.half_frame:g} s",
        "the connection is cut",
    ),
    (
        "a response that the client does not read",
        f"{_TIMES.unread:g} s",
        "the connection is cut",
    ),
    (
        "a response that flow control holds back",
        f"{_TIMES.calls.untaken:g} s",
        "the call is cut",
    ),
    (
        "answer to the PING for a program selector",
        f"{_TIMES.answer:g} s",
        "the call is refused",
    ),
    (
        "memory for connections and calls of one user, with the default limits",
        f"{most_bytes_of_one_user(limits(LimitSettings())) // _MIB} MiB",
        "UNAVAILABLE, or the connection is cut",
    ),
    (
        "audiences of a JWT-SVID",
        f"{MAX_AUDIENCES}, of {MAX_AUDIENCE_CHARS:,} characters together",
        "INVALID_ARGUMENT",
    ),
    (
        "identities of an entry with a template, at a time",
        f"{MAX_PER_ENTRY:,}",
        "UNAVAILABLE for further ones",
    ),
    (
        "burst of requests",
        f"{BURST_SECONDS:g} s of `requests_per_second`",
        "the rest waits in the sockets",
    ),
    (
        "connects and hang-ups of a user",
        f"{HANG_UPS_PER_SECOND:,.0f} per second",
        f"lockout from the socket for {LOCKED_SECONDS:g} s",
    ),
    (
        "a configuration or entry file",
        f"{MAX_FILE_BYTES // _MIB} MiB, {MAX_DEPTH} levels deep",
        "an error",
    ),
    (
        "a burst of edits",
        f"over after {1000 * _WATCH.debounce:g} ms without an event",
        "the reload comes after it",
    ),
    (
        "an entry file that is open for writing",
        f"{_WATCH.writer:g} s",
        "the reload no longer waits for it",
    ),
    (
        "edits that inotify does not report (network file systems)",
        f"a look every {_WATCH.look:g} s",
        "the reload comes after the look",
    ),
    ("a hint", f"{MAX_HINT_BYTES} bytes", "an error"),
    ("a DNS name", f"{MAX_DNS_NAME} characters", "an error"),
    ("the path of a socket", f"{MAX_SOCKET_PATH} bytes", "an error"),
    (
        "life of an SVID",
        f"{format_duration(MIN_LIFETIME)} to 1/{LAST_PART} of `authority.x509_ca_ttl`",
        "an error",
    ),
    ("any duration", format_duration(MAX_DURATION), "an error"),
    ("X.509-SVIDs kept over a restart", f"{MAX_SVIDS:,}", "others are made anew"),
    ("log lines that wait to be written", f"{QUEUED_LINES:,}", "dropped and counted"),
    (
        "descriptors of the agent",
        f"{MIN_DESCRIPTORS} at least; {DESCRIPTORS_PER_CONNECTION} for each connection",
        "it does not start; a warning",
    ),
    (
        "address space of the agent",
        f"{MIN_ADDRESS_SPACE // _GIB} GiB at least",
        "it does not start",
    ),
)
"""The thing that is limited, its limit, and the effect beyond it."""
