"""`vouchd who`: what the kernel says of whoever connects, with the code that the agent uses.

A diagnostic: it answers `nc -U PATH` with everything known about that process, and gives out
nothing else. It never waits for a client: the report fits into an empty socket buffer, and what
does not is not sent.
"""

from __future__ import annotations

import grp
import os
import pwd
import select
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from agent.cli.options import output_option
from agent.cli.output import Format, show, to_json, to_text
from agent.clock import SystemClock
from agent.errors import PeerError
from agent.listener import Listener, SocketFile
from agent.peer import identify

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.cli.output import Data
    from agent.peer import Caller, ProcessView

# Anybody may ask who they are; that is the point.
_SOCKET_MODE = 0o666
_NAMESPACES = ("user", "pid", "mnt", "cgroup")
_INPUT_BYTES = 64 * 1024

_CLOCK = SystemClock()


@click.command()
@click.option(
    "--listen",
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The socket to make; a live one is never taken over.",
)
@click.option("--once", is_flag=True, help="End after one connection.")
@output_option
def who(listen: Path, output: Format, *, once: bool) -> None:
    """Tell who connects: everything that the kernel says of each process.

    Try it with: nc -U PATH. Run it as root to see the executables of other users' processes. It
    ends with Ctrl-C or SIGTERM (exit code 0).
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), closing(Listener(_socket_file(listen))) as listener:
        click.echo(f"vouchd who ready on {listener.path}", err=True)
        while True:
            select.select([listener.socket], [], [])
            with suppress(BlockingIOError, ConnectionAbortedError):
                connection, _address = listener.socket.accept()
                with connection:
                    report = describe(connection)
                    show(report, output, _CLOCK.now())
                    _answer(connection, report, output)
                if once:
                    return


def describe(connection: socket.socket) -> dict[str, Data]:
    """Everything the kernel says of the process that connected, or why it would be refused."""
    try:
        with closing(identify(connection)) as caller:
            return _describe(caller)
    except PeerError as error:
        return {"refused": str(error)}


def _socket_file(path: Path) -> SocketFile:
    return SocketFile(path=path.absolute(), mode=_SOCKET_MODE)


def _describe(caller: Caller) -> dict[str, Data]:
    credentials = caller.credentials
    with caller.open_proc() as view:
        report: dict[str, Data] = {
            "pid": credentials.pid,
            "uid": credentials.uid,
            "user": _name(lambda: pwd.getpwuid(credentials.uid).pw_name),
            "gid": credentials.gid,
            "group": _group(credentials.gid),
            "supplementary_gids": credentials.groups,
            "supplementary_groups": [_group(gid) for gid in credentials.groups],
            "proof": str(caller.proof),
            "weaknesses": caller.weaknesses,
            "pidfd_inode": caller.process.inode,
            "command": _read(lambda: os.fsdecode(view.read("comm")).rstrip("\n")),
            "executable": _read(lambda: view.readlink("exe")),
            "executable_file": _read(lambda: _file_id(view)),
            "namespaces": _read(lambda: [view.readlink(f"ns/{kind}") for kind in _NAMESPACES]),
            "cgroup": _read(lambda: os.fsdecode(view.read("cgroup")).splitlines()),
            "display_only_read_by_pid": {"process_tree": _tree(credentials.pid)},
        }
    if not caller.process.is_alive():
        # What was read may be of nobody; the agent would drop it too.
        return {"refused": f"the process {credentials.pid} exited while it was looked at"}
    return report


def _file_id(view: ProcessView) -> str:
    status = view.stat("exe")
    return f"device {os.major(status.st_dev)}:{os.minor(status.st_dev)} inode {status.st_ino}"


def _read(find: Callable[[], str | list[str]]) -> str | list[str]:
    try:
        return find()
    except OSError as error:
        return f"not readable: {error.strerror}"


def _group(gid: int) -> str:
    return _name(lambda: grp.getgrgid(gid).gr_name)


def _name(find: Callable[[], str]) -> str:
    try:
        return find()
    except KeyError:
        return "(no name)"


def _tree(pid: int) -> list[str]:
    """The process and its ancestors, the nearest first."""
    try:
        process = psutil.Process(pid)  # noqa: TID251 - for people to look at, and marked as such
        return [f"{each.pid} {each.name()}" for each in (process, *process.parents())]
    except psutil.Error:
        return []


def _answer(connection: socket.socket, report: dict[str, Data], output: Format) -> None:
    text = to_json(report) if output is Format.JSON else to_text(report, _CLOCK.now()).plain
    connection.settimeout(0)
    with suppress(OSError):  # it went away, or does not read: its loss
        connection.send(f"{text}\n".encode())
        # Closing with its words unread would look like a reset to the client.
        connection.recv(_INPUT_BYTES)
