"""`vouchd who`: print the kernel's evidence of each caller, read with the agent's own code.

A diagnostic without identities: it answers `nc -U PATH` with the evidence of that process. It never
waits for a client: the report fits into an empty socket buffer, and the rest is not sent.
"""

from __future__ import annotations

import select
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import output_option
from agent.cli.output import Format, show, to_json
from agent.cli.text import to_text
from agent.clock import SystemClock
from agent.errors import PeerError
from agent.gate.listener import Listener, SocketFile
from agent.kernel.caller import identify
from agent.kernel.inspect import facts_of

if TYPE_CHECKING:
    import socket

    from agent.cli.output import Data

# Every user may connect: the answer holds only evidence of the connecting process.
_SOCKET_MODE = 0o666
_INPUT_BYTES = 64 * 1024

_CLOCK = SystemClock()


@click.command(epilog="Example: vouchd who --listen /tmp/who.sock --once")
@click.option(
    "--listen",
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Socket to create; a socket in use is not replaced.",
)
@click.option("--once", is_flag=True, help="Exit after one connection.")
@output_option
def who(listen: Path, output: Format, *, once: bool) -> None:
    """Print the kernel's evidence of connecting processes.

    Connect with `nc -U PATH`, which prints the same. Root also sees the executables of other users'
    processes. Ctrl-C or SIGTERM ends the command (exit code 0).
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
    """Return the evidence of the connected process, or the reason for its refusal."""
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
    with suppress(OSError):  # the client disconnected, or does not read
        connection.send(f"{text}\n".encode())
        # Closing with unread input would reset the connection.
        connection.recv(_INPUT_BYTES)
