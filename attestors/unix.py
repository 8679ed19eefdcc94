"""The `unix` attestor: the process's user and groups, and its program.

    unix:uid:1001  unix:user:payments                      effective user at connect
    unix:gid:1001  unix:group:payments                     effective group at connect
    unix:supplementary_gid:27  unix:supplementary_group:sudo
    unix:path:/usr/bin/payments                            path of the executable
    unix:sha256:<64 hex digits>                            digest of its content

The IDs are those that the kernel recorded at connect. The path is reported only if it names, in the
agent's own view of the file system, the file that runs. Otherwise any user could make a mount
namespace, bind a program over /usr/bin/payments, and get its selectors.

Threads look up names and paths, and read executables. Only the status of the executable is read on
the event loop: a network file system that hangs there stops the agent.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import hashlib
import os
import pwd
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import BaseModel, Field

from attestors.api import AttestorError, Findings, Options, Selector, SelectorKind
from attestors.lib.once import SlowLookup

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from concurrent.futures import Executor

    from attestors.api import AttestorContext, WorkloadRef

READ_BYTES = 1 << 20
CACHE_SIZE = 4096
# Names may come from a directory service, and files move.
FRESH_SECONDS = 60.0
# The wait for each kind of answer that needs a thread.
NAME_SECONDS = 1.0
PATH_SECONDS = 1.0
DIGEST_SECONDS = 3.0
# One executable is read at a time: hashing takes at most one processor. A user with this many
# executables in the queue gets no further one into it.
DIGESTS_PER_USER = 4
DIGESTS_IN_ALL = 64
# Two writes within one tick of the kernel's clock (10 ms at most) give a file the same ctime. The
# cache takes the digest only of a file whose last change is older than this.
SETTLED_NS = 2_000_000_000
# A process may have 65,536 groups.
SHOWN_NAMELESS = 5

_KERNEL = "the kernel, at connect"
_PROGRAM = "the running program"
_PROGRAM_KINDS = ("path:", "sha256:")
# ENAMETOOLONG: the path is over 4,095 bytes. ENOENT: the first thread has ended, and with it the
# memory map of the process. A retry gives the same.
_PERMANENT = frozenset({errno.ENAMETOOLONG, errno.ENOENT})

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class UnixOptions(Options):
    """Options of the `unix` attestor."""

    sha256: bool = Field(default=True, description="Report unix:sha256 selectors.")
    sha256_max_bytes: int = Field(
        default=256 << 20,
        gt=0,
        description="An executable larger than this many bytes gets no unix:sha256 selector.",
    )


@dataclass(frozen=True, slots=True)
class FileKey:
    """The status of a file, which changes with its content as far as the kernel can tell."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileKey:
        """Take the key from a status."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


class UnixAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "unix"
    selectors: ClassVar[tuple[SelectorKind, ...]] = (
        SelectorKind("unix:uid:1001", "the effective user ID at connect is this", _KERNEL),
        SelectorKind("unix:user:payments", "that user has this name on the host", _KERNEL),
        SelectorKind("unix:gid:1001", "the effective group ID at connect is this", _KERNEL),
        SelectorKind("unix:group:payments", "that group has this name on the host", _KERNEL),
        SelectorKind(
            "unix:supplementary_gid:27", "this is one of the supplementary group IDs", _KERNEL
        ),
        SelectorKind(
            "unix:supplementary_group:sudo", "a group of this name is one of them", _KERNEL
        ),
        SelectorKind(
            "unix:path:/usr/bin/payments", "the running executable is this file", _PROGRAM
        ),
        SelectorKind(
            "unix:sha256:<64 hex digits>",
            "the content of the executable has this digest (up to `sha256_max_bytes`)",
            _PROGRAM,
        ),
    )
    Options: ClassVar[type[BaseModel]] = UnixOptions
    # A process with the same executable and IDs has the same selectors; names change rarely.
    reuse_seconds: ClassVar[float] = 5 * FRESH_SECONDS
    reuse_across_connections: ClassVar[bool] = True
    timeout: ClassVar[float] = 2 * (NAME_SECONDS + PATH_SECONDS + DIGEST_SECONDS)

    def __init__(
        self, options: UnixOptions, _context: AttestorContext, digests: Digests | None = None
    ) -> None:
        self._options = options
        # One pool for each kind: a look-up that hangs must not delay those of another kind.
        self._name_threads = ThreadPoolExecutor(2, "unix-names")
        self._path_threads = ThreadPoolExecutor(2, "unix-paths")
        self._users: SlowLookup[int, str | None] = self._fresh(self._name_threads)
        self._groups: SlowLookup[int, str | None] = self._fresh(self._name_threads)
        self._paths: SlowLookup[str, FileKey | None] = self._fresh(self._path_threads)
        self._digests = digests or Digests()

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        facts = [f"uid:{workload.uid}", f"gid:{workload.gid}"]
        facts += [f"supplementary_gid:{gid}" for gid in workload.groups]
        notes: list[str] = []
        pending: list[str] = []
        now = asyncio.get_running_loop().time
        for what, seconds, find in (
            ("user and group names", NAME_SECONDS, self._names),
            ("unix:path", PATH_SECONDS, self._path),
            ("unix:sha256", self._digests.seconds, self._sha256),
        ):
            try:
                facts += await find(workload, notes, now() + seconds)
            except TimeoutError:
                pending.append(f"{what} took too long")
            except AttestorError as error:
                pending.append(f"no {what} yet: {error}")
            except ProcessLookupError as error:
                raise AttestorError("the process exited") from error
            except OSError as error:
                _note_read_error(error, what, notes, pending)
        selectors, program = _selectors(tuple(facts))
        return Findings(selectors, tuple(notes), tuple(pending), program)

    async def close(self) -> None:
        """See Attestor.close."""
        for threads in (self._name_threads, self._path_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self._digests.close()

    @staticmethod
    def _fresh(threads: Executor) -> SlowLookup[K, V]:
        return SlowLookup(threads, size=CACHE_SIZE, seconds=FRESH_SECONDS)

    async def _names(self, workload: WorkloadRef, notes: list[str], until: float) -> list[str]:
        user = await self._users.get(workload.uid, lambda: partial(_user_name, workload.uid), until)
        facts = [f"user:{user}"] if user else []
        nameless = [] if user else [f"uid {workload.uid}"]
        of = [("group", workload.gid), *(("supplementary_group", gid) for gid in workload.groups)]
        for kind, gid in of:
            if name := await self._group(gid, until):
                facts.append(f"{kind}:{name}")
            else:
                nameless.append(f"gid {gid}")
        if nameless:
            shown = ", ".join([*dict.fromkeys(nameless)][:SHOWN_NAMELESS])
            notes.append(f"no name on this host: {shown}")
        return facts

    async def _group(self, gid: int, until: float) -> str | None:
        return await self._groups.get(gid, lambda: partial(_group_name, gid), until)

    async def _path(self, workload: WorkloadRef, notes: list[str], until: float) -> list[str]:
        path = workload.readlink("exe")
        if await self._is_at(path, FileKey.of(workload.stat("exe")), until):
            return [f"path:{path}"]
        notes.append(
            f"no unix:path: {path!r} is not the running file in the agent's file system "
            "(replaced, deleted, or in another mount namespace)"
        )
        return []

    async def _is_at(self, path: str, running: FileKey, until: float) -> bool:
        """Return whether the path names the running file in the agent's own view.

        It compares the whole key: the kernel may give device and inode to a later file.
        """
        if await self._look_up(path, until) == running:
            return True
        self._paths.forget(path)  # the cached answer may be outdated
        return await self._look_up(path, until) == running

    async def _look_up(self, path: str, until: float) -> FileKey | None:
        return await self._paths.get(path, lambda: partial(_file_at, path), until)

    async def _sha256(self, workload: WorkloadRef, notes: list[str], until: float) -> list[str]:
        if not self._options.sha256:
            return []
        key = FileKey.of(workload.stat("exe"))
        if key.size > self._options.sha256_max_bytes:
            notes.append(
                f"no unix:sha256: the executable has {key.size} bytes, over sha256_max_bytes "
                f"({self._options.sha256_max_bytes})"
            )
            return []
        return [f"sha256:{await self._digests.get(workload, key, until)}"]


def _note_read_error(error: OSError, what: str, notes: list[str], pending: list[str]) -> None:
    """Note an error of a read of the executable, which costs no other kind of selector."""
    if isinstance(error, PermissionError):
        notes.append(
            f"no {what}: the agent may not read this executable "
            "(it needs CAP_SYS_PTRACE for those of other users)"
        )
    elif error.errno in _PERMANENT:
        notes.append(f"no {what}: the executable cannot be read: {error.strerror}")
    else:
        pending.append(f"no {what} yet: the executable cannot be read: {error.strerror}")


def digest_of(descriptor: int, expected: FileKey) -> str:
    """Read a file, close it, and return the SHA-256 digest of its content.

    Raises:
        AttestorError: its status was not `expected` before and after.
    """
    with open(descriptor, "rb", buffering=0) as file:
        unchanged = FileKey.of(os.fstat(descriptor)) == expected
        digest = hashlib.sha256()
        left = expected.size
        while left > 0 and (chunk := file.read(min(left, READ_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        unchanged = unchanged and FileKey.of(os.fstat(descriptor)) == expected
    if left or not unchanged:
        raise AttestorError("the executable changed while it was read")
    return digest.hexdigest()


class Digests:
    """SHA-256 digests of executables: one file is read at a time, and once while it is unchanged.

    `seconds` is the wait of a caller for one digest; `read` reads a file.
    """

    def __init__(
        self,
        seconds: float = DIGEST_SECONDS,
        read: Callable[[int, FileKey], str] = digest_of,
    ) -> None:
        self.seconds = seconds
        self._read = read
        self._thread = ThreadPoolExecutor(1, "unix-sha256")
        self._known: SlowLookup[FileKey, str] = SlowLookup(self._thread, size=CACHE_SIZE)
        self._waiting: Counter[int] = Counter()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """The number of executables that are read or in the queue."""
        return self._waiting.total()

    async def get(self, workload: WorkloadRef, key: FileKey, until: float) -> str:
        """Return the digest of the process's executable, whose status is `key`.

        Raises:
            TimeoutError: it is not there at this time of the event loop.
            AttestorError: the file changed meanwhile, or its user has too many in the queue.
        """
        settled = time.time_ns() - key.ctime_ns > SETTLED_NS
        return await self._known.get(key, lambda: self._begin(workload, key), until, keep=settled)

    def close(self) -> None:
        """End the thread after the file that it reads."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, workload: WorkloadRef, key: FileKey) -> Callable[[], str]:
        uid = workload.uid
        if self._waiting[uid] >= DIGESTS_PER_USER:
            raise AttestorError(f"{DIGESTS_PER_USER} other executables of this user are being read")
        if self.waiting >= DIGESTS_IN_ALL:
            raise AttestorError(f"{DIGESTS_IN_ALL} other executables are being read")
        descriptor = workload.open("exe")
        self._count(uid, 1)

        def read() -> str:
            try:
                return self._read(descriptor, key)
            finally:
                self._count(uid, -1)

        return read

    def _count(self, uid: int, change: int) -> None:
        with self._lock:
            self._waiting[uid] += change
            self._waiting += Counter()  # drops the zeros


# Many processes of a host have equal facts: the workers of one user, and a new connection of one.
@lru_cache(maxsize=CACHE_SIZE)
def _selectors(facts: tuple[str, ...]) -> tuple[frozenset[Selector], frozenset[Selector]]:
    """Return all selectors, and those that hold because of the program."""
    selectors = frozenset(Selector(UnixAttestor.name, fact) for fact in facts)
    program = frozenset(each for each in selectors if each.value.startswith(_PROGRAM_KINDS))
    return selectors, program


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def _file_at(path: str) -> FileKey | None:
    try:
        return FileKey.of(Path(path).stat())
    except (OSError, ValueError):
        return None
