"""The `unix` attestor: who the process runs as, and what program it runs.

    unix:uid:1001  unix:user:payments                      effective user at connect
    unix:gid:1001  unix:group:payments                     effective group at connect
    unix:supplementary_gid:27  unix:supplementary_group:sudo
    unix:path:/usr/bin/payments                            the executable
    unix:sha256:<64 hex digits>                            its content

Ids are those the kernel recorded at connect. A path is reported only if it names, in the agent's
own view of the file system, the very file that is running: otherwise anybody could unshare a mount
namespace, bind a program of theirs over /usr/bin/payments, and claim its name.

What is slow or may hang (directory services, network file systems, reading the executable) happens
in threads.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field

from attestors._lookup import SlowLookup
from attestors.api import AttestorError, Findings, Options, Selector

if TYPE_CHECKING:
    from attestors.api import AttestorContext, WorkloadRef

THREADS = 4
READ_BYTES = 1 << 20
CACHE_SIZE = 4096
# Names may come from a directory service, and files move: how long an answer is believed.
FRESH_SECONDS = 60.0
# A file that is written twice within one tick of the kernel's clock (10 ms at most) keeps its
# ctime. A digest is remembered only for files whose last change lies clearly further back.
SETTLED_NS = 2_000_000_000


class UnixOptions(Options):
    """Options of the `unix` attestor."""

    sha256: bool = Field(default=True, description="Report unix:sha256 selectors.")
    sha256_max_bytes: int = Field(
        default=256 << 20,
        gt=0,
        description="An executable larger than this many bytes gets no unix:sha256 selector.",
    )


@dataclass(frozen=True, slots=True)
class _FileKey:
    """A file's content, as far as the kernel can tell without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _FileKey:
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


class UnixAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "unix"
    Options: ClassVar[type[BaseModel]] = UnixOptions
    timeout: ClassVar[float] = 5.0

    def __init__(self, options: UnixOptions, _context: AttestorContext) -> None:
        self._options = options
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="unix-attestor")
        self._users: SlowLookup[int, str | None] = SlowLookup(
            self._threads, size=CACHE_SIZE, seconds=FRESH_SECONDS
        )
        self._groups: SlowLookup[int, str | None] = SlowLookup(
            self._threads, size=CACHE_SIZE, seconds=FRESH_SECONDS
        )
        self._paths: SlowLookup[str, tuple[int, int] | None] = SlowLookup(
            self._threads, size=CACHE_SIZE, seconds=FRESH_SECONDS
        )
        self._digests: SlowLookup[_FileKey, str] = SlowLookup(self._threads, size=CACHE_SIZE)

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        facts = [f"uid:{workload.uid}", f"gid:{workload.gid}"]
        facts += [f"supplementary_gid:{gid}" for gid in workload.groups]
        facts += await self._names(workload)
        notes: list[str] = []
        try:
            facts += await self._path(workload, notes)
            facts += await self._sha256(workload, notes)
        except PermissionError:
            notes.append(
                "no unix:path and unix:sha256: the agent may not look at this executable "
                "(it needs CAP_SYS_PTRACE to see those of other users)"
            )
        except (ProcessLookupError, FileNotFoundError) as error:
            raise AttestorError("the process exited") from error
        return Findings(frozenset(Selector(self.name, fact) for fact in facts), tuple(notes))

    async def close(self) -> None:
        """See Attestor.close."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _names(self, workload: WorkloadRef) -> list[str]:
        user = await self._users.get(workload.uid, lambda: partial(_user_name, workload.uid))
        group = await self._group(workload.gid)
        others = [await self._group(gid) for gid in workload.groups]
        facts = [f"user:{user}"] if user else []
        facts += [f"group:{group}"] if group else []
        return facts + [f"supplementary_group:{other}" for other in others if other]

    async def _group(self, gid: int) -> str | None:
        return await self._groups.get(gid, lambda: partial(_group_name, gid))

    async def _path(self, workload: WorkloadRef, notes: list[str]) -> list[str]:
        path = workload.readlink("exe")
        running = workload.stat("exe")
        here = await self._paths.get(path, lambda: partial(_device_and_inode, path))
        if here == (running.st_dev, running.st_ino):
            return [f"path:{path}"]
        notes.append(
            f"no unix:path: {path!r} is not the running file in the agent's file system "
            "(replaced, deleted, or in another mount namespace)"
        )
        return []

    async def _sha256(self, workload: WorkloadRef, notes: list[str]) -> list[str]:
        if not self._options.sha256:
            return []
        key = _FileKey.of(workload.stat("exe"))
        if key.size > self._options.sha256_max_bytes:
            notes.append(
                f"no unix:sha256: the executable has {key.size} bytes, over sha256_max_bytes "
                f"({self._options.sha256_max_bytes})"
            )
            return []
        settled = time.time_ns() - key.ctime_ns > SETTLED_NS
        digest = await self._digests.get(
            key, lambda: partial(_digest, workload.open("exe"), key), keep=settled
        )
        return [f"sha256:{digest}"]


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


def _device_and_inode(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _digest(descriptor: int, expected: _FileKey) -> str:
    """SHA-256 of the file, which is closed here. It must be `expected` before and after."""
    with open(descriptor, "rb", buffering=0) as file:
        unchanged = _FileKey.of(os.fstat(descriptor)) == expected
        digest = hashlib.sha256()
        left = expected.size
        while left > 0 and (chunk := file.read(min(left, READ_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        unchanged = unchanged and _FileKey.of(os.fstat(descriptor)) == expected
    if left or not unchanged:
        raise AttestorError("the executable changed while it was read")
    return digest.hexdigest()
