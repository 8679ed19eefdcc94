"""The plug-in interface: an attestor turns a process into selectors.

An attestor is a class with a `name` (the type of its selectors), an `Options` model for its part of
`agent.yaml`, and one coroutine. A third-party package names its class under the entry-point group
`vouchd.attestors` and imports nothing of vouchd but this module. See `attestors/README.md`.

The rules:

* Read the process only through the `WorkloadRef`, never by PID: the kernel may give the PID to
  another process a microsecond later.
* Return selectors of your own type only. Leave out what you do not know: a missing selector can
  only remove matches, never add one.
* Raise `AttestorError` if you could not find out. The selectors of other attestors still count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    """A fact about a process: a type, which is the name of its attestor, and a value.

    Raises:
        TypeError: a part is not text.
        ValueError: the type is not a plain word, or the value is empty.
    """

    type: str
    value: str

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.type):
            raise ValueError(
                f"selector type {self.type!r} is not a word of [A-Za-z0-9_-], at most 64 long"
            )
        if not isinstance(self.value, str):
            raise TypeError(f"selector value {self.value!r} is not text")
        if not self.value:
            raise ValueError("selector value is empty")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `type:value`; the value may contain further colons.

        Raises:
            ValueError: no colon, or one of the two parts is not valid.
        """
        type_, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f"selector {text!r} is not of the form type:value")
        return cls(type_, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"

    @property
    def kind(self) -> str:
        """The part of the value that names its kind: `uid`, `1000:label`, `env:TOKEN`."""
        match = _VARIABLE.match(self.value) or _KIND.match(self.value)
        return match[0] if match else self.value

    def redacted(self) -> str:
        """Return the text for logs and people, without the value of an environment variable."""
        if _VARIABLE.match(self.value):
            return f"{self.type}:{self.kind}=<hidden>"
        return str(self)


@dataclass(frozen=True, slots=True)
class SelectorKind:
    """One kind of the selectors that an attestor returns, for references and manual pages."""

    example: str
    """A whole selector of this kind, such as `unix:uid:1001`."""
    meaning: str
    """The condition on the process, as the rest of a sentence that begins with "true if"."""
    basis: str
    """The source of the fact: the kernel, the running program, or the answer of an engine."""


class AttestorError(Exception):
    """An attestor could not find out; the text tells the operator why."""


class WorkloadRef(Protocol):
    """The process: the kernel's record at connect, and reads of /proc through one descriptor.

    The descriptor is that of the process's own `/proc` directory: no read reaches a successor with
    the same PID. The reference is valid until `attest` returns, and only on the
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
        """The PID in the agent's namespace: to show and to ask engines, not to open."""
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
        """Read the whole content of `/proc/PID/name`, or its first `limit` bytes if it is longer.

        It reads on until the end of the file: one read(2) of a file in `/proc` may return a page.
        """
        ...

    def readlink(self, name: str) -> str:
        """Read the target of the link `/proc/PID/name`, undecodable bytes as surrogates."""
        ...

    def stat(self, name: str) -> os.stat_result:
        """Read the status of the file that `/proc/PID/name` names (links are followed)."""
        ...

    def open(self, name: str) -> int:
        """Open `/proc/PID/name` for reading. The attestor must close the descriptor."""
        ...


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of one attestor about one process.

    The log and `vouchd explain` show `notes` and `pending` to operators; callers never see them.

    Raises:
        TypeError: a field has a value of another type.
        ValueError: a selector in `program` is not among the selectors.
    """

    selectors: frozenset[Selector] = frozenset()
    notes: tuple[str, ...] = ()
    """Why selectors are missing permanently: `executable not readable: …`."""
    pending: tuple[str, ...] = ()
    """Why selectors are missing now. If no entry matches, the caller is asked to try again."""
    program: frozenset[Selector] = frozenset()
    """The selectors that hold because of the program that the process runs, such as `unix:path`.

    Before the agent issues an identity by one of them, this program must prove that it holds the
    connection.
    """

    def __post_init__(self) -> None:
        _check(self, "selectors", frozenset, Selector)
        _check(self, "program", frozenset, Selector)
        _check(self, "notes", tuple, str)
        _check(self, "pending", tuple, str)
        if not self.program <= self.selectors:
            raise ValueError("a selector in `program` is not among the selectors")


def _check(findings: Findings, name: str, make: type, kind: type) -> None:
    """Turn a field into its type, and check each value in it."""
    values = getattr(findings, name)
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"Findings.{name} is {type(values).__name__} instead of a collection")
    values = make(values)  # the same object if it has the type already
    for value in values:
        if not isinstance(value, kind):
            found = type(value).__name__
            raise TypeError(f"Findings.{name} contains {found} instead of {kind.__name__}")
    object.__setattr__(findings, name, values)


class Options(BaseModel):
    """Base of an attestor's part of `agent.yaml`. An unknown key is an error with file and line."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class AttestorContext:
    """The services of the agent for an attestor."""

    log: Callable[..., None] = field(default=lambda *_args, **_fields: None)
    """Logs one warning, at a limited rate: `log("event in plain words", key=value)`."""


class Attestor(Protocol):
    """Turns a process into selectors of one type."""

    name: ClassVar[str]
    """The type of its selectors, and the key under `attestors:` that enables it."""

    Options: ClassVar[type[BaseModel]]
    """Validates the value of that key; the constructor gets an instance."""

    timeout: ClassVar[float]
    """Time limit for one process, in seconds. After it, the attestor has failed for that process.

    An attestor that does not end when it is cancelled then is not called again until it ends.
    """

    reuse_seconds: ClassVar[float]
    """How long its findings are used again for a connection whose process stays the same.

    The same means: executable file, user, groups, cgroup and namespaces. It does not mean command
    line or environment, which a process can change. 0 or absent: no reuse.
    """

    reuse_across_connections: ClassVar[bool]
    """Whether its findings are used for other connections of the same process too.

    False or absent: each connection is attested anew.
    """

    def __init__(self, options: Any, context: AttestorContext) -> None:
        """Called once, at start; it must not block.

        Raises:
            AttestorError: the attestor cannot work; the agent does not start.
        """
        ...

    async def attest(self, workload: WorkloadRef) -> Findings:
        """Find the facts about this process.

        The agent cancels it at its time limit, and when the process exits.

        Raises:
            AttestorError: the attestor could not find out.
        """
        ...

    async def close(self) -> None:
        """Release every resource. The agent calls it once: at stop, or if it cannot start."""
        ...
