"""Who is talking: the kernel stamps every chunk with the process that sent it (unix(7)).

SO_PEERCRED says who connected. A socket can be inherited by a child, passed to another process, or
left behind by exec; with SO_PASSCRED each read comes with the sender's credentials, and bytes of
different senders never come in one read. A chunk counts only if

1. its sender has the PID of the process that connected, and
2. that process is still alive *after* the chunk was read: a PID is not given to another process
   before then, so nobody else can have had it when the chunk was sent.

Together they name the process exactly, so that SO_PASSPIDFD has nothing to add here: it would cost
one descriptor a chunk, which whoever sends could make the agent run out of.

A sender can only lie about its PID with CAP_SYS_ADMIN over its PID namespace. Root can; others can
inside a user namespace of their own, which is why nothing about the program of a process in such a
namespace is believed (agent.attestation.attestor).
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from agent.errors import PeerError, PeerGoneError

if TYPE_CHECKING:
    from agent.kernel.caller import Caller

_UCRED = struct.Struct("=iII")
# Room for the credentials and not for one descriptor more: the kernel drops passed descriptors
# that do not fit (SCM_RIGHTS, MSG_CTRUNC), so there are none to close and none to run out of.
_CONTROL_BYTES = socket.CMSG_SPACE(_UCRED.size)
_STAMP = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)


class ForeignSenderError(PeerError):
    """Bytes came from another process than the one that connected."""

    def __init__(self, pid: int, uid: int, gid: int, count: int) -> None:
        super().__init__("bytes of another process")
        self.pid = pid
        """In the agent's PID namespace; 0 if the sender is not visible from here."""
        self.uid = uid
        self.gid = gid
        self.count = count


def stamp_senders(listener: socket.socket) -> None:
    """Have the kernel stamp what is sent to accepted sockets. Before listen(2), to miss nothing."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def receive(sock: socket.socket, limit: int, caller: Caller) -> bytes:
    """Read the next chunk, at most `limit` bytes; b"" at the end of the stream.

    Raises:
        ForeignSenderError: another process sent it.
        PeerGoneError: the caller exited, so nobody can tell who sent it.
        OSError: see recvmsg(2).
    """
    chunk, ancillary, _flags, _address = sock.recvmsg(limit, _CONTROL_BYTES)
    if not chunk:
        return b""
    # Without a stamp nobody sent it.
    pid, uid, gid = _UCRED.unpack(ancillary[0][2]) if _is_stamped(ancillary) else (0, -1, -1)
    if pid != caller.credentials.pid:
        raise ForeignSenderError(pid, uid, gid, len(chunk))
    if not caller.process.is_alive():
        raise PeerGoneError("process exited")
    return chunk


def _is_stamped(ancillary: list[tuple[int, int, bytes]]) -> bool:
    return bool(ancillary) and ancillary[0][:2] == _STAMP and len(ancillary[0][2]) == _UCRED.size
