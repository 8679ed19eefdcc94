"""A naive agent with common defects: each attack must succeed against it.

It reads SO_PEERCRED once, at accept, and `/proc/PID` by number at each call. It does not check
that the process still lives, which process sends, or whether the process has executed another
program. It trusts the link `/proc/PID/exe`, and takes a script's path from an interpreter's command
line. One thread serves all callers; a protocol error ends it.

    python -m tests.support.naive DIRECTORY     reads entries.yaml and serves agent.sock there
"""

from __future__ import annotations

import hashlib
import os
import resource
import selectors
import socket
import struct
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath

import h2.config
import h2.connection
import h2.events

from agent.entries.entry import EntrySet
from agent.entries.load import load_entries
from agent.pb import workloadapi_pb2 as pb
from agent.spiffe.ids import TrustDomain
from attestors.api import Selector

_UCRED = struct.Struct("=iII")
_INTERPRETERS = ("python", "sh", "bash", "dash", "perl")
# The limit on descriptors in a login shell.
_DESCRIPTORS = 1024
# No entry here expires.
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Client:
    """A connection, with the PID and UID that the naive agent assumes for it."""

    sock: socket.socket
    pid: int
    uid: int
    http: h2.connection.H2Connection = field(
        default_factory=lambda: h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False)
        )
    )


class NaiveAgent:
    """Serves FetchX509SVID on `agent.sock`, SPIFFE IDs only."""

    def __init__(self, directory: Path, entries: EntrySet) -> None:
        self._entries = entries
        self._events = selectors.DefaultSelector()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(directory / "agent.sock"))
        (directory / "agent.sock").chmod(0o777)
        listener.listen(4096)
        self._events.register(listener, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self._events.select():
                if isinstance(key.data, Client):
                    self._read(key.data)
                elif isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        sock, _address = listener.accept()
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        client = Client(sock, pid, uid)
        client.http.initiate_connection()
        sock.sendall(client.http.data_to_send())
        self._events.register(sock, selectors.EVENT_READ, client)

    def _read(self, client: Client) -> None:
        """Read and answer until the socket is empty."""
        while True:
            try:
                data = client.sock.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._forget(client)
                return
            for event in client.http.receive_data(data):
                if isinstance(event, h2.events.RequestReceived) and event.stream_id:
                    self._answer(client, event.stream_id)
            if not self._send(client):
                self._forget(client)
                return

    def _send(self, client: Client) -> bool:
        try:
            client.sock.sendall(client.http.data_to_send())
        except OSError:
            return False
        return True

    def _forget(self, client: Client) -> None:
        self._events.unregister(client.sock)
        client.sock.close()

    def _answer(self, client: Client, stream: int) -> None:
        matched = self._entries.match(facts(client.pid, client.uid), _NOW)
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        if not matched:
            client.http.send_headers(stream, [*headers, ("grpc-status", "7")], end_stream=True)
            return
        svids = [pb.X509SVID(spiffe_id=str(entry.spiffe_id)) for entry in matched]
        message = pb.X509SVIDResponse(svids=svids).SerializeToString()
        client.http.send_headers(stream, headers)
        client.http.send_data(stream, struct.pack(">BI", 0, len(message)) + message)


def facts(pid: int, uid_at_connect: int) -> frozenset[Selector]:
    """Return selectors of the process that has this PID now."""
    try:
        found = _of_process(Path(f"/proc/{pid}"))
    except OSError:  # the process has exited: trust the UID at connect
        found = [f"uid:{uid_at_connect}", f"gid:{uid_at_connect}"]
    return frozenset(Selector("unix", fact) for fact in found)


def _of_process(directory: Path) -> list[str]:
    status = dict(line.split(":", 1) for line in (directory / "status").read_text().splitlines())
    executable = os.readlink(directory / "exe").removesuffix(" (deleted)")  # noqa: PTH115
    command = (directory / "cmdline").read_bytes().split(b"\0")
    found = [
        f"uid:{status['Uid'].split()[1]}",
        f"gid:{status['Gid'].split()[1]}",
        *(f"supplementary_gid:{gid}" for gid in status["Groups"].split()),
        f"path:{executable}",
        f"sha256:{hashlib.sha256((directory / 'exe').read_bytes()).hexdigest()}",
    ]
    if PurePath(executable).name.startswith(_INTERPRETERS) and len(command) > 1 and command[1]:
        found.append(f"path:{os.fsdecode(command[1])}")
    return found


def main() -> None:
    directory = Path(sys.argv[1])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))
    loaded = load_entries(
        [PurePath(directory / "entries.yaml")], TrustDomain("example.org"), frozenset({"unix"})
    )
    agent = NaiveAgent(directory, loaded.entries)
    sys.stderr.write("naive agent ready on\n")
    sys.stderr.flush()
    agent.serve()


if __name__ == "__main__":
    main()
