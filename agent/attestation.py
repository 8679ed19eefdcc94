"""From a caller to its selectors: all attestors at once, and the evidence checked on both sides.

The order is what makes it safe:

1. open the process's `/proc` directory while its pidfd is alive;
2. take a fingerprint: credentials and executable, now;
3. run the attestors, each within its own time;
4. take the fingerprint again, then poll the pidfd. If either changed, nothing found in between is
   used: it may be true of two different programs.

A failed attestor is not an answer. Its selectors are missing, which can only remove matches
(entries match on subsets), and the result says so, so that "nothing matched" is not mistaken for
"no identity".
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.errors import AttestationError, PeerError, PeerGoneError
from agent.peer import overflow_ids
from attestors.api import AttestorError, Findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from agent.peer import Caller, Credentials, ProcessView
    from attestors.api import Attestor, Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What is known of a caller. `failures` maps the names of failed attestors to the reason."""

    selectors: frozenset[Selector]
    notes: tuple[str, ...]
    failures: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must not change while a process is attested."""

    uid: int
    gid: int
    groups: frozenset[int]
    executable: tuple[int, int, int, int, int] | None
    """Device, inode, size, mtime, ctime; None where the agent cannot look (proc(5))."""


# Real, effective, saved and filesystem ID, in this order (proc_pid_status(5)); the process's name,
# which it chooses itself, is escaped and stands in a line of its own before these.
_STATUS_IDS = re.compile(
    rb"^Uid:\t\d+\t(?P<uid>\d+)\t.*\nGid:\t\d+\t(?P<gid>\d+)\t.*\n(?:FDSize:.*\n)?"
    rb"Groups:\t(?P<groups>[\d ]*)$",
    re.MULTILINE,
)


class WorkloadAttestor:
    """Runs the enabled attestors for a caller."""

    def __init__(self, attestors: Sequence[Attestor], log: FilteringBoundLogger) -> None:
        self._attestors = tuple(attestors)
        self._log = log

    async def attest(self, caller: Caller) -> Attestation:
        """Find out what is true of the caller's process.

        Raises:
            PeerGoneError: the process is gone.
            PeerError: it changed its program or its credentials.
        """
        with caller.open_proc() as process:
            before = read_fingerprint(process)
            _check_credentials(before, caller.credentials)
            results = await asyncio.gather(
                *(self._run(attestor, process) for attestor in self._attestors)
            )
            if read_fingerprint(process) != before:
                raise PeerError("the process changed its program or user while it was attested")
        if not caller.process.is_alive():
            raise PeerGoneError("the process exited while it was attested")
        return _join(results)

    async def close(self) -> None:
        """Close every attestor."""
        for attestor in self._attestors:
            await attestor.close()

    async def _run(self, attestor: Attestor, process: ProcessView) -> _Result:
        name = attestor.name
        try:
            async with asyncio.timeout(attestor.timeout):
                findings = await attestor.attest(process)
        except PeerGoneError:
            raise
        except TimeoutError:
            return _Result(name, failure=f"did not answer within {attestor.timeout:g} s")
        except AttestorError as error:
            return _Result(name, failure=str(error))
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and must not end the call
            self._log.exception("attestor broke", attestor=name)
            return _Result(name, failure=f"broke: {type(error).__name__}")
        return self._own_selectors_only(name, findings)

    def _own_selectors_only(self, name: str, findings: Findings) -> _Result:
        foreign = sorted({found.type for found in findings.selectors if found.type != name})
        if foreign:
            self._log.warning("attestor claimed foreign selectors", attestor=name, types=foreign)
            return _Result(name, failure=f"claimed selectors of other types: {', '.join(foreign)}")
        return _Result(name, findings, "; ".join(findings.pending) or None)


@dataclass(frozen=True, slots=True)
class _Result:
    name: str
    findings: Findings = field(default_factory=Findings)
    failure: str | None = None


def _join(results: Sequence[_Result]) -> Attestation:
    return Attestation(
        selectors=frozenset().union(*(result.findings.selectors for result in results)),
        notes=tuple(note for result in results for note in result.findings.notes),
        failures={result.name: result.failure for result in results if result.failure is not None},
    )


def read_fingerprint(process: ProcessView) -> Fingerprint:
    """Credentials and executable of the process as they are now.

    Raises:
        AttestationError: /proc is not as expected.
        PeerGoneError: the process is gone.
    """
    try:
        status = process.read("status")
        executable = _read_executable(process)
    except (ProcessLookupError, FileNotFoundError) as error:
        raise PeerGoneError("the process is gone") from error
    ids = _STATUS_IDS.search(status)
    if ids is None:
        raise AttestationError("/proc/PID/status is not as this kernel's proc(5) has it")
    return Fingerprint(
        uid=int(ids["uid"]),
        gid=int(ids["gid"]),
        groups=frozenset(map(int, ids["groups"].split())),
        executable=executable,
    )


def _read_executable(process: ProcessView) -> tuple[int, int, int, int, int] | None:
    try:
        found = process.stat("exe")
    except (ProcessLookupError, FileNotFoundError):
        raise
    except OSError:
        return None  # not ours to look at, or a file system that is out of order
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _check_credentials(now: Fingerprint, at_connect: Credentials) -> None:
    if (now.uid, now.gid) != (at_connect.uid, at_connect.gid):
        raise PeerError("the process changed its user or group after it connected")
    # Groups without a mapping look alike and were left out at connect.
    if now.groups - {overflow_ids().gid} != frozenset(at_connect.groups):
        raise PeerError("the process changed its supplementary groups after it connected")
