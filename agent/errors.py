"""The exceptions of vouchd, by cause: the operator's files, the caller, the agent.

Each message is one sentence: the problem, its place, the way out. The table from these classes to
gRPC status codes is in `agent.api.status`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class VouchdError(Exception):
    """Base class of all exceptions that vouchd raises on purpose."""


class Severity(StrEnum):
    """An error refuses a file; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A problem in a file. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        """Return `file:line:column: message`, which editors and CI systems parse."""
        mark = "warning: " if self.severity is Severity.WARNING else ""
        return f"{self.file}:{self.line}:{self.column}: {mark}{self.message}"


class ConfigError(VouchdError):
    """The configuration or the entry files have errors; `problems` has all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(map(str, self.problems)))


class RequestError(VouchdError):
    """The request is malformed, or its token is not valid: a retry fails too."""


class NotFoundError(VouchdError):
    """The object that the request names does not exist."""


class UnsupportedError(VouchdError):
    """The method does not exist, or is an optional one that this agent does not serve."""


class PeerError(VouchdError):
    """The evidence of the caller does not hold: it exited, changed, or cannot be identified."""


class PeerGoneError(PeerError):
    """The caller's process has exited."""


class NoIdentityError(VouchdError):
    """The caller is attested, and no registration entry matches."""


class UnavailableError(VouchdError):
    """The agent cannot answer now; the same call may succeed later."""


class StoppingError(UnavailableError):
    """The agent is stopping; a retry reaches the next agent."""


class AttestationError(UnavailableError):
    """An attestor failed and no entry matched: "no identity" could be wrong."""


class UnansweredError(UnavailableError):
    """The caller's process did not answer a PING on its connection in time."""


class AuthorityError(UnavailableError):
    """The authority cannot sign, or refused an SVID that violates the standard."""


class ResponseSizeError(VouchdError):
    """A response is larger than clients take: it is not sent."""


class StartupError(VouchdError):
    """The agent cannot start: a socket in use, a locked or damaged data directory."""


class DefectError(VouchdError):
    """A task of the agent raised an unexpected exception; the log has the traceback."""


_ADVICE = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in the quota of the agent's user",
    errno.EROFS: (
        "mount its disk writable (the kernel's log may say why it is read-only); a unit with "
        "ProtectSystem=strict must have the directory in ReadWritePaths="
    ),
    errno.EIO: "check its disk; the kernel's log says more",
    errno.EMFILE: "allow the agent more open files (LimitNOFILE= in its unit, or ulimit -n)",
    errno.ENFILE: "close files of other processes on this host, or raise fs.file-max",
    errno.ENOMEM: "allow the agent more memory (MemoryMax= in its unit), or free some on this host",
}


def with_remedy(error: OSError) -> str:
    """Return the text of an operating system error, with the way out if one is known."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return reason if advice is None else f"{reason}: {advice}"
