"""Check the sender of each chunk: SCM_CREDENTIALS must name the caller (unix(7)).

SO_PEERCRED names the process that connected. A child can inherit the socket, another process can
receive it, and exec can leave it open. With SO_PASSCRED each read returns the sender's credentials,
and one read never returns bytes of two senders. A chunk counts only if

1. its sender has the PID of the caller, and
2. the caller is still alive after the read. The kernel reuses a PID only after its process was
   reaped, so no other process had this PID when the chunk was sent.

The two conditions identify the process exactly. SO_PASSPIDFD would add nothing, and would cost a
descriptor for each chunk: a sender could use up the agent's descriptors.

A process can send a wrong PID only with CAP_SYS_ADMIN over its PID namespace. Root has it, and so
has a process in a user namespace of its own. The agent therefore believes nothing about the program
of a process in another user namespace (agent.attestation.attestor).
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from agent.errors import PeerError, PeerGoneError

if TYPE_CHECKING:
    from agent.kernel.caller import Caller

_UCRED = struct.Struct("=iII")
# Space for the credentials alone. The kernel drops passed descriptors that do not fit (SCM_RIGHTS,
# MSG_CTRUNC), so a sender cannot use up the agent's descriptors.
_CONTROL_BYTES = socket.CMSG_SPACE(_UCRED.size)
_CREDENTIALS = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)


class ForeignSenderError(PeerError):
    """A chunk came from another process than the caller."""

    def __init__(self, pid: int, uid: int, gid: int, count: int) -> None:
        super().__init__("bytes of another process")
        self.pid = pid
        """In the agent's PID namespace; 0 if the sender is not visible from there."""
        self.uid = uid
        self.gid = gid
        self.count = count
        """The length of the chunk in bytes."""


def stamp_senders(listener: socket.socket) -> None:
    """Set SO_PASSCRED, which accepted sockets inherit.

    Call it before listen(2): the kernel adds no credentials to bytes that were sent earlier.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def receive(sock: socket.socket, limit: int, caller: Caller) -> bytes:
    """Read the next chunk, at most `limit` bytes; b"" at the end of the stream.

    Raises:
        ForeignSenderError: another process sent the chunk.
        PeerGoneError: the caller exited, so the sender's PID proves nothing.
        OSError: see recvmsg(2).
    """
    chunk, ancillary, _flags, _address = sock.recvmsg(limit, _CONTROL_BYTES)
    if not chunk:
        return b""
    # A chunk without credentials counts as sent by no process.
    pid, uid, gid = _UCRED.unpack(ancillary[0][2]) if _is_stamped(ancillary) else (0, -1, -1)
    if pid != caller.credentials.pid:
        raise ForeignSenderError(pid, uid, gid, len(chunk))
    if not caller.process.is_alive():
        raise PeerGoneError("process exited")
    return chunk


def _is_stamped(ancillary: list[tuple[int, int, bytes]]) -> bool:
    return (
        bool(ancillary) and ancillary[0][:2] == _CREDENTIALS and len(ancillary[0][2]) == _UCRED.size
    )
