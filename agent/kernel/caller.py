"""Who is calling: what the kernel recorded when a socket was connected, and a pinned view of /proc.

Rules (reference: unix(7), pidfd_open(2), proc(5)):

* identity is the peer's credentials *at connect*, and a pidfd taken from the socket itself
  (SO_PEERPIDFD), so that a PID is never looked up by its number alone;
* a process lives as long as its pidfd does not poll readable. A zombie polls readable: it is dead;
* `/proc/PID` is opened while the pidfd is alive and read through that one descriptor. A PID is not
  given to another process before its owner is reaped, so what was read while the pidfd stayed
  alive belongs to that process;
* a caller whom this kernel cannot name (another PID namespace, a user that is not mapped here) is
  refused with the reason, never matched.

Nothing here decides who gets what.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass, field
from enum import StrEnum

from agent.errors import PeerError, PeerGoneError
from agent.kernel.account import Account, cgroup_of
from agent.kernel.credentials import Credentials, read_credentials
from agent.kernel.process import _USUAL_BYTES, ProcessHandle, ProcessView

SO_PEERPIDFD = 77

# These say nothing of the peer.
_OUR_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Proof(StrEnum):
    """How the kernel's word on who connected was obtained, strongest first."""

    PEERPIDFD = "peerpidfd"
    """A pidfd from the socket: pinned by the kernel at connect (Linux 6.5)."""
    PIDFD_OPEN = "pidfd_open"
    """A pidfd by number, right after accept: blind to a PID reused between connect and accept."""

    def satisfies(self, required: Proof) -> bool:
        """Whether this is as strong as `required`."""
        order = list(Proof)
        return order.index(self) <= order.index(required)


class Weakness(StrEnum):
    """What a kernel cannot tell of a caller, and others can."""

    NO_PEERPIDFD = (
        "no SO_PEERPIDFD (Linux 6.5): a PID reused between connect and accept is not seen"
    )
    NO_PIDFS = "no pidfs (Linux 6.9): the process has no number that is never used again"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Caller:
    """A connected process as the kernel knows it, one for each connection.

    Whoever holds the connection closes it.
    """

    credentials: Credentials
    proof: Proof
    process: ProcessHandle
    cgroup: str = ""
    """Whose cgroup it was in when it was identified; empty at the root."""
    account: Account = field(init=False)
    """Whom its calls are put down to."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "account", Account(self.credentials.uid, self.cgroup))

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What this kernel could not tell, and others can."""
        found = []
        if self.proof is Proof.PIDFD_OPEN:
            found.append(Weakness.NO_PEERPIDFD.value)
        if self.process.inode is None:
            found.append(Weakness.NO_PIDFS.value)
        return tuple(found)

    def open_proc(self) -> ProcessView:
        """Open the process's `/proc` directory for one round of reads.

        Raises:
            PeerGoneError: the process is gone.
        """
        return ProcessView(self.credentials, self.process)

    def close(self) -> None:
        """Give up the pidfd; the caller counts as dead from now on."""
        self.process.close()


def identify(sock: socket.socket, required: Proof = Proof.PIDFD_OPEN) -> Caller:
    """Who connected this socket.

    The result owns a pidfd: close it.

    Raises:
        PeerGoneError: the process is gone.
        PeerError: this kernel cannot name it, or not with the required proof.
        OSError: the agent is out of descriptors or memory.
    """
    credentials = read_credentials(sock)
    pidfd, proof = _open_pidfd(sock, credentials.pid)
    process = ProcessHandle(pidfd)
    try:
        cgroup = _read_cgroup(credentials.pid) if process.is_alive() else ""
        _check(process, proof, required)
    except BaseException:
        process.close()
        raise
    return Caller(credentials=credentials, proof=proof, process=process, cgroup=cgroup)


def _check(process: ProcessHandle, proof: Proof, required: Proof) -> None:
    """After what was read by PID: while the process lived, nobody else had its PID."""
    if not process.is_alive():
        raise PeerGoneError("the process exited before its connection was accepted")
    if not proof.satisfies(required):
        raise PeerError(
            f"the kernel's proof of who connected is {proof}, and require_proof asks for {required}"
        )


def _read_cgroup(pid: int) -> str:
    try:
        descriptor = os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OUR_SHORTAGES:
            raise
        return ""  # gone, as is found out next, or hidden from the agent: the user alone counts
    try:
        return cgroup_of(os.read(descriptor, _USUAL_BYTES))
    except ProcessLookupError:
        return ""
    finally:
        os.close(descriptor)


def _open_pidfd(sock: socket.socket, pid: int) -> tuple[int, Proof]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int.from_bytes(raw, sys.byteorder), Proof.PEERPIDFD
    except OSError as error:
        if error.errno in _OUR_SHORTAGES:
            raise
        # Only "no such option" means an old kernel. Everything else, EINVAL of Linux 6.5 to 6.15
        # first, is what a reaped peer looks like.
        if error.errno != errno.ENOPROTOOPT:
            raise PeerGoneError("the process exited before its connection was accepted") from error
    try:
        return os.pidfd_open(pid), Proof.PIDFD_OPEN
    except ProcessLookupError as error:
        raise PeerGoneError("the process exited before its connection was accepted") from error
