"""The reports of the rooms to the metrics: stages and their durations, refusals, ends of calls.

All words are known in advance: no report contains text that a caller chooses or that identifies a
caller. The reporting code does not know the metrics.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType


class Stage(StrEnum):
    """A timed part of a call. Each attestor is a stage besides, by its name."""

    ACCEPT = "accept"
    """From accept(2) until the caller is identified and its quota checked."""
    EVIDENCE = "evidence"
    """Reading the process's fingerprint before the attestors, and again after them."""
    MATCH = "match"
    """Finding the entries."""
    CHALLENGE = "challenge"
    """Waiting until the caller's process has answered a PING."""
    MINT_X509 = "mint:x509"
    """Making a key and an X.509-SVID that is not cached."""
    MINT_JWT = "mint:jwt"
    """Making a JWT-SVID that is not cached."""
    SEND = "send"
    """Sending a message of a stream; it waits for a client that does not read."""


class Refused(StrEnum):
    """Why a caller was refused. The quotas have their own words (agent.limits.quotas.REASONS)."""

    REQUEST = "request"
    """The request is malformed, or its token is not valid."""
    UNSUPPORTED = "unsupported"
    """The method is not served."""
    GONE = "gone"
    """The process exited, or hung up."""
    FOREIGN_SENDER = "foreign_sender"
    """Another process sent bytes on the connection."""
    EVIDENCE = "evidence"
    """The kernel cannot name the process, or it changed during its attestation."""
    NO_ENTRY = "no_entry"
    """No entry matches."""
    ATTESTOR = "attestor"
    """An attestor failed, and no entry matched."""
    UNANSWERED = "unanswered"
    """The process did not answer a PING."""
    PROTOCOL = "protocol"
    """The client broke a rule of HTTP/2."""
    EXCESS = "excess"
    """A header block is too large, or too many frames carry no request."""
    SLOW = "slow"
    """The client did not send the rest of a frame, or did not read, in time."""
    SIZE = "size"
    """A request is too large."""
    RESPONSE_SIZE = "response_size"
    """A response is too large for clients."""
    LOCKED_OUT = "locked_out"
    """A user was locked out for a moment: its processes connect and hang up again and again."""
    SILENT = "silent"
    """The connection sent no request in time."""
    AUTHORITY = "authority"
    """The authority cannot sign."""
    UNAVAILABLE = "unavailable"
    """The agent cannot answer now, for another reason."""
    INTERNAL = "internal"
    """An unexpected exception; the log has it."""
    OTHER = "other"
    """A reason that is not declared here."""


class Signals(Protocol):
    """Receiver of the reports. Each call reports several times, so it must be fast."""

    def timed(self, stage: Stage, seconds: float) -> None:
        """Record how long a stage took."""
        ...

    def attested(self, attestor: str, seconds: float, *, failed: bool) -> None:
        """Record an attestor's answer or failure."""
        ...

    def waited(self) -> None:
        """Record that a lane of the fair queue begins to wait for its share."""
        ...

    def refused(self, reason: str, times: int = 1) -> None:
        """Record refusals for one reason: a value of `Refused`, or a quota's word."""
        ...

    def ended(self, method: str, code: str) -> None:
        """Record the end of a call, with the name of its gRPC status code."""
        ...


class NoSignals:
    """Discards all reports."""

    def timed(self, stage: Stage, seconds: float) -> None:
        """See Signals.timed."""

    def attested(self, attestor: str, seconds: float, *, failed: bool) -> None:
        """See Signals.attested."""

    def waited(self) -> None:
        """See Signals.waited."""

    def refused(self, reason: str, times: int = 1) -> None:
        """See Signals.refused."""

    def ended(self, method: str, code: str) -> None:
        """See Signals.ended."""


NO_SIGNALS = NoSignals()


class Stopwatch:
    """Times its block as one stage, whether the block returns or raises."""

    __slots__ = ("_began", "_signals", "_stage")

    def __init__(self, signals: Signals, stage: Stage) -> None:
        self._signals = signals
        self._stage = stage

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._signals.timed(self._stage, time.perf_counter() - self._began)
