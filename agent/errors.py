"""The error tree, split by whose fault it is.

Each message is one sentence for the person who has to act on it. `agent.api.status` holds the only
table from these classes to gRPC status codes; nothing here knows of gRPC.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class VouchdError(Exception):
    """Root of everything vouchd raises on purpose."""


class Severity(StrEnum):
    """Whether a problem stops what was read from being used."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in a file. Lines and columns count from 1, as editors do."""

    file: str
    line: int
    column: int
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        """`file:line:column: message`, the form that editors and CI systems can jump to."""
        mark = "warning: " if self.severity is Severity.WARNING else ""
        return f"{self.file}:{self.line}:{self.column}: {mark}{self.message}"


class ConfigError(VouchdError):
    """The operator's files are wrong. Carries every mistake found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(map(str, self.problems)))


class RequestError(VouchdError):
    """The caller's request is malformed or its token is not valid: retrying cannot help it."""


class NotFoundError(VouchdError):
    """What the request names does not exist."""


class UnsupportedError(VouchdError):
    """The method does not exist, or the standard has it and this agent does not serve it."""


class PeerError(VouchdError):
    """The caller cannot be vouched for: gone, changed, or not nameable by this kernel."""


class PeerGoneError(PeerError):
    """The caller's process has exited, so nobody is left to answer."""


class NoIdentityError(VouchdError):
    """The caller is who it is, and no registration entry gives it an identity."""


class UnavailableError(VouchdError):
    """Our side cannot answer now; the same call may succeed later."""


class StoppingError(UnavailableError):
    """The agent ends now; whoever calls again reaches its successor."""


class AttestationError(UnavailableError):
    """An attestor failed and nothing else matched, so that "no identity" would be a guess."""


class UnansweredError(UnavailableError):
    """The caller did not prove in time that it is at the other end of its connection."""


class AuthorityError(UnavailableError):
    """The authority cannot sign, or refused to sign something that breaks the SVID rules."""


class StartupError(VouchdError):
    """The daemon cannot start here: a live socket, a locked or damaged data directory."""


class DefectError(VouchdError):
    """A part of the agent ended with an exception that is a defect; the log has the traceback."""


_REMEDIES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in the quota of the agent's user",
    errno.EROFS: (
        "have its disk mounted writable, and see in the kernel's log why it is not; a unit with "
        "ProtectSystem=strict has to name the directory in ReadWritePaths="
    ),
    errno.EIO: "look after its disk; the kernel's log says more",
    errno.EMFILE: "allow the agent more open files (LimitNOFILE= in its unit, or ulimit -n)",
    errno.ENFILE: "have fewer files open on this host, or raise fs.file-max",
    errno.ENOMEM: "allow the agent more memory (MemoryMax= in its unit), or free some on this host",
}


def with_remedy(error: OSError) -> str:
    """What the system says is wrong, and what to do about it where that is known."""
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0)
    return reason if remedy is None else f"{reason}: {remedy}"
