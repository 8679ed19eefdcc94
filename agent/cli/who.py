"""`vouchd who`: what the kernel says of whoever connects, with the code that the agent uses.

A diagnostic: it answers `nc -U PATH` with everything known about that process, and gives out
nothing else. It never waits for a client: the report fits into an empty socket buffer, and what
does not is not sent.
"""

from __future__ import annotations

import select
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import output_option
from agent.cli.output import Format, show, to_json, to_text
from agent.clock import SystemClock
from agent.errors import PeerError
from agent.gate.listener import Listener, SocketFile
from agent.kernel.caller import identify
from agent.kernel.inspect import facts_of

if TYPE_CHECKING:
    import socket

    from agent.cli.output import Data

# Anybody may ask who they are; that is the point.
_SOCKET_MODE = 0o666
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
            return facts_of(caller)
    except PeerError as error:
        return {"refused": str(error)}


def _socket_file(path: Path) -> SocketFile:
    return SocketFile(path=path.absolute(), mode=_SOCKET_MODE)


def _answer(connection: socket.socket, report: dict[str, Data], output: Format) -> None:
    text = to_json(report) if output is Format.JSON else to_text(report, _CLOCK.now()).plain
    connection.settimeout(0)
    with suppress(OSError):  # it went away, or does not read: its loss
        connection.send(f"{text}\n".encode())
        # Closing with its words unread would look like a reset to the client.
        connection.recv(_INPUT_BYTES)
