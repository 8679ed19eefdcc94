"""What the parts of the agent report while they work, to whoever keeps figures of it.

All words are known in advance: nothing that a caller chooses, or that tells callers apart, gets
here. Those who report do not know what becomes of it.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType


class Stage(StrEnum):
    """A part of the way of one call. Each attestor is a stage besides, by its name."""

    ACCEPT = "accept"
    """From accept(2) until the kernel has said who it is and the relay is under way."""
    EVIDENCE = "evidence"
    """Reading what the process is, before the attestors and again after them."""
    MATCH = "match"
    """Finding the entries."""
    CHALLENGE = "challenge"
    """Until the caller's own program has answered for itself."""
    MINT_X509 = "mint:x509"
    """A key and an X.509-SVID that was not there yet."""
    MINT_JWT = "mint:jwt"
    """A JWT-SVID that was not there yet."""
    SEND = "send"
    """Handing over a message of a stream, which waits for a client that does not read."""


class Refused(StrEnum):
    """Why somebody did not get what they asked for. Limits have words of their own besides."""

    REQUEST = "request"
    """The request is malformed, or the token in it is not valid."""
    UNSUPPORTED = "unsupported"
    """Such a method is not served here."""
    GONE = "gone"
    """The process exited, or hung up."""
    FOREIGN_SENDER = "foreign_sender"
    """Another process spoke on its connection."""
    EVIDENCE = "evidence"
    """The kernel cannot name it, or it changed while it was looked at."""
    NO_ENTRY = "no_entry"
    """No entry gives it an identity."""
    ATTESTOR = "attestor"
    """An attestor failed, and nothing else matched."""
    UNANSWERED = "unanswered"
    """It did not prove that it is at the other end."""
    HEADERS = "headers"
    """Its headers have no end."""
    SIZE = "size"
    """What it sent in one call is too much."""
    LOCKED_OUT = "locked_out"
    """A user, for a second: its processes connect and hang up again and again."""
    SILENT = "silent"
    """It connected and said nothing."""
    AUTHORITY = "authority"
    """The authority cannot sign."""
    UNAVAILABLE = "unavailable"
    """The agent cannot answer now, for another reason."""
    INTERNAL = "internal"
    """Something broke that nobody expected; the log says what."""
    OTHER = "other"
    """Of a word that nobody announced."""


class Signals(Protocol):
    """Whoever keeps figures. Called several times for each call, so it has to be quick."""

    def timed(self, stage: Stage, seconds: float) -> None:
        """A stage has taken so long."""
        ...

    def attested(self, attestor: str, seconds: float, *, failed: bool) -> None:
        """An attestor has answered, or has failed to."""
        ...

    def waited(self) -> None:
        """The requests of somebody have to wait for their share."""
        ...

    def refused(self, reason: str, times: int = 1) -> None:
        """Somebody was refused, for one of `Refused` or a limit; or so many, for the same."""
        ...

    def ended(self, method: str, code: str) -> None:
        """A call has ended, with the name of a gRPC status code."""
        ...


class Unheard:
    """Signals that nobody keeps."""

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


UNHEARD = Unheard()


class Stopwatch:
    """Times the block that it guards, however that ends."""

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
