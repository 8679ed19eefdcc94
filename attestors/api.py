"""The public plug-in interface: from a process to selectors.

An attestor is a class with a `name` (the selector type it may produce), an `Options` model for its
part of `agent.yaml`, and one coroutine. Third parties name theirs under the entry-point group
`vouchd.attestors` and need nothing of vouchd but this module. See `attestors/README.md`.

Rules an attestor lives by:

* it reads the process only through the `WorkloadRef` it is given, never by PID: a PID can be
  somebody else a microsecond later;
* it returns selectors of its own type only; what it does not know it leaves out, because a missing
  selector can only remove matches, never add one;
* it raises `AttestorError` when it could not find out. The other attestors' selectors still count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

ENTRY_POINT_GROUP = "vouchd.attestors"

_TYPE = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The first part of a value names its kind: `uid:1001`. podman-rootless puts the user before it:
# `1000:label:NAME:VALUE`.
_KIND = re.compile(r"(?:[0-9]+:)?[^:]*")
# An environment variable, `env:NAME=VALUE` or `1000:env:NAME=VALUE`: its value may be a secret.
_VARIABLE = re.compile(r"(?:[0-9]+:)?env:[^=]*")


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One fact about a process: a type (the attestor that vouches for it) and a value.

    Raises:
        ValueError: the type is not a plain word or the value is empty.
    """

    type: str
    value: str

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.type):
            raise ValueError(
                f"selector type {self.type!r} is not a word of [A-Za-z0-9_-], at most 64 long"
            )
        if not self.value:
            raise ValueError("selector value is empty")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `type:value`; the value may hold further colons.

        Raises:
            ValueError: no colon, or one of the two parts is not valid.
        """
        kind, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f"selector {text!r} is not of the form type:value")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"

    @property
    def kind(self) -> str:
        """The part of the value that names its kind: `uid`, `1000:label`, `env:TOKEN`."""
        match = _VARIABLE.match(self.value) or _KIND.match(self.value)
        return match[0] if match else self.value

    def redacted(self) -> str:
        """The text for logs and people, without the value of an environment variable."""
        if _VARIABLE.match(self.value):
            return f"{self.type}:{self.kind}=<hidden>"
        return str(self)


class AttestorError(Exception):
    """An attestor could not find out what it should; the text says why, for the operator."""


class WorkloadRef(Protocol):
    """The process being attested: what the kernel recorded at connect, and pinned reads of /proc.

    All reads go through one descriptor of the process's own `/proc` directory; they never reach a
    successor with the same PID. The reference is valid until `attest` returns, and only on the
    thread of the event loop: for work in a thread, `open` the file first and hand over its
    descriptor.

    Raises:
        ProcessLookupError: from `read`, `readlink`, `stat` and `open`: the process is gone (a
            zombie is gone), or the reference is no longer valid.
        PermissionError: the agent may not read this.
        FileNotFoundError: the process has no such file, although it is alive.
        OSError: any other error of the system call.
    """

    @property
    def pid(self) -> int:
        """The PID in the agent's namespace. For display and for asking engines, never to open."""
        ...

    @property
    def uid(self) -> int:
        """The effective user ID when the process connected (SO_PEERCRED)."""
        ...

    @property
    def gid(self) -> int:
        """The effective group ID when the process connected (SO_PEERCRED)."""
        ...

    @property
    def groups(self) -> tuple[int, ...]:
        """The supplementary group IDs when the process connected (SO_PEERGROUPS)."""
        ...

    @property
    def pidfd(self) -> int:
        """A pidfd of the process, dead or alive. The agent owns it: duplicate it to keep it.

        Raises:
            ProcessLookupError: the reference is no longer valid.
        """
        ...

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        """The whole content of `/proc/PID/name`, or its first `limit` bytes if it is longer.

        It reads on until the end of the file: one read(2) of a file in `/proc` may return a page.
        """
        ...

    def readlink(self, name: str) -> str:
        """The target of the link `/proc/PID/name`, undecodable bytes as surrogates."""
        ...

    def stat(self, name: str) -> os.stat_result:
        """Status of the file that `/proc/PID/name` leads to (links are followed)."""
        ...

    def open(self, name: str) -> int:
        """A new read-only descriptor of `/proc/PID/name`, which the attestor must close."""
        ...


@dataclass(frozen=True, slots=True)
class Findings:
    """What an attestor found out.

    `notes` say which selectors are missing for good and why ("executable not readable: …");
    `pending` which ones may be had later. The caller is then asked to come again if nothing
    matched. Operators see both in the log, callers never do.

    Raises:
        ValueError: `program` holds what `selectors` does not.
    """

    selectors: frozenset[Selector] = frozenset()
    notes: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    program: frozenset[Selector] = frozenset()
    """Those of `selectors` that hold because of what program runs, such as `unix:path`.

    Who gets an identity by one of these must first prove that this program holds the connection.
    """

    def __post_init__(self) -> None:
        if not self.program <= self.selectors:
            raise ValueError("a selector in `program` is not among the selectors")


class Options(BaseModel):
    """Base of an attestor's part of `agent.yaml`. Unknown keys are errors with file and line."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class AttestorContext:
    """What the agent lends every attestor."""

    log: Callable[..., None] = field(default=lambda *_args, **_fields: None)
    """Logs one warning: `log("event in plain words", key=value)`."""


class Attestor(Protocol):
    """Turns a process into selectors of one type."""

    name: ClassVar[str]
    """The selector type, and the key under `attestors:` that switches this one on."""

    Options: ClassVar[type[BaseModel]]
    """Validates that key's value; an instance is handed to the constructor."""

    timeout: ClassVar[float]
    """Seconds that it may take for one caller; then it has failed, and the others count."""

    reuse_seconds: ClassVar[float]
    """How long its findings stay good for a connection whose process stays the same.

    The same means: executable file, user, groups, cgroup, and namespaces; not the command line or
    the environment, which a process can change as it likes. 0, or left out: asked each time.
    """

    reuse_across_connections: ClassVar[bool]
    """Whether they are as good for other connections of that same process.

    False, or left out: whoever connects anew is looked at anew.
    """

    def __init__(self, options: Any, context: AttestorContext) -> None:
        """Made once at start. Must not block; raise AttestorError to refuse to start."""
        ...

    async def attest(self, workload: WorkloadRef) -> Findings:
        """Find out what is true of this process.

        It is cancelled when its time is up or the process exits.

        Raises:
            AttestorError: it could not find out.
        """
        ...

    async def close(self) -> None:
        """Release what was opened. Called once, at stop."""
        ...
