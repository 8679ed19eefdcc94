"""Name the caller of a connection: credentials at connect, pidfd (SO_PEERPIDFD), cgroup.

Rules (unix(7), pidfd_open(2), proc(5)):

* A caller's identity is the peer's credentials at connect, and a pidfd that comes from the socket
  itself, so that no PID is looked up by its number alone.
* A process is alive while its pidfd does not poll readable. A zombie's pidfd polls readable: a
  zombie is dead.
* `/proc/PID` is opened while the pidfd is alive, and read through that one descriptor. The kernel
  reuses a PID only after its process was reaped, so everything that is read while the pidfd is
  alive belongs to that process.
* A caller that this kernel cannot name (another PID namespace, a user that is not mapped here) is
  refused with the reason, and never matched.

This module decides nothing about identities.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from agent.errors import PeerError, PeerGoneError
from agent.kernel.account import Account, cgroup_of
from agent.kernel.credentials import Credentials, read_credentials, read_peer
from agent.kernel.process import ProcessHandle, ProcessView, read_to_end

SO_PEERPIDFD = 77

# A path has at most 4,096 bytes, and version 1 of cgroups some dozen of them.
_CGROUP_BYTES_MAX = 1 << 16

# Errors that are the agent's own, and tell nothing about the peer.
_OUR_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Proof(StrEnum):
    """How the kernel proved which process connected, the strongest proof first."""

    PEERPIDFD = "peerpidfd"
    """A pidfd from the socket: the kernel pinned the process at connect (Linux 6.5)."""
    PIDFD_OPEN = "pidfd_open"
    """A pidfd by number, right after accept: it misses a PID reused between connect and accept."""

    def satisfies(self, required: Proof) -> bool:
        """Return whether this proof is at least as strong as `required`."""
        order = list(Proof)
        return order.index(self) <= order.index(required)


class Weakness(StrEnum):
    """A fact that this kernel does not state about a caller, and newer kernels do."""

    NO_PEERPIDFD = (
        "no SO_PEERPIDFD (Linux 6.5): a PID reused between connect and accept is not seen"
    )
    NO_PIDFS = "no pidfs (Linux 6.9): the process has no number that is never used again"


class Kept(Protocol):
    """Something that holds descriptors."""

    def close(self) -> None:
        """Close them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Caller:
    """A connected process as the kernel knows it, one for each connection.

    It owns the pidfd. The owner of the connection closes it.
    """

    credentials: Credentials
    proof: Proof
    process: ProcessHandle
    cgroup: str = ""
    """The cgroup of its account when it connected; empty for the root cgroup."""
    kept: list[Kept] = field(init=False, default_factory=list)
    """Descriptors for its next calls, which end with it."""
    account: Account = field(init=False)
    """The account that its calls count against."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "account", Account(self.credentials.uid, self.cgroup))

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """The facts that this kernel does not state about it, as text."""
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
            AttestationError: the agent is out of descriptors, or may not read `/proc`.
        """
        return ProcessView(self.credentials, self.process)

    def close(self) -> None:
        """Close the pidfd and what is kept. From now on the caller counts as dead."""
        self.process.close()
        self.drop_kept()

    def drop_kept(self) -> None:
        """Close the descriptors for its next calls."""
        while self.kept:
            self.kept.pop().close()


def identify(sock: socket.socket, required: Proof = Proof.PIDFD_OPEN) -> Caller:
    """Name the process that connected this socket.

    The result owns a pidfd: close it.

    Raises:
        PeerGoneError: the process is gone.
        PeerError: this kernel cannot name the process, or not with the required proof.
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


def ask_again(sock: socket.socket, caller: Caller) -> None:
    """Ask the kernel whether the socket's peer is still this caller, and alive.

    Raises:
        PeerGoneError: the process exited.
        PeerError: SO_PEERCRED names another process, user or group than at connect.
    """
    at_connect = caller.credentials
    if read_peer(sock) != (at_connect.pid, at_connect.uid, at_connect.gid):
        raise PeerError("the kernel names another peer than when the connection was accepted")
    if not caller.process.is_alive():
        raise PeerGoneError("the process exited")


def _check(process: ProcessHandle, proof: Proof, required: Proof) -> None:
    """Check liveness after the reads by PID: a PID has no other owner while its process lives."""
    if not process.is_alive():
        raise PeerGoneError("the process exited before its connection was accepted")
    if not proof.satisfies(required):
        raise PeerError(
            f"the kernel's proof of the caller is {proof}, and require_proof asks for {required}"
        )


def _read_cgroup(pid: int) -> str:
    try:
        descriptor = os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OUR_SHORTAGES:
            raise
        # The process exited, which `_check` detects, or `/proc` hides it: then the user alone
        # counts.
        return ""
    try:
        return cgroup_of(read_to_end(descriptor, _CGROUP_BYTES_MAX))
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
        # ENOPROTOOPT means a kernel without the option. A reaped peer gives any other error; Linux
        # 6.5 to 6.15 give EINVAL.
        if error.errno != errno.ENOPROTOOPT:
            raise PeerGoneError("the process exited before its connection was accepted") from error
    try:
        return os.pidfd_open(pid), Proof.PIDFD_OPEN
    except ProcessLookupError as error:
        raise PeerGoneError("the process exited before its connection was accepted") from error
