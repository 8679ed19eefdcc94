"""The commands for the operator of a running agent: status, explain, authority."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.live import Live

from agent.authority.authority_set import AuthorityKind
from agent.cli.options import Pid, admin_socket_option, output_option, timeout_option
from agent.cli.output import Format, show, to_text
from agent.client.admin import AdminClient
from agent.clock import SystemClock
from agent.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_REFRESH_SECONDS = 1.0

_CLOCK = SystemClock()

_F = TypeVar("_F", bound="Callable[..., Any]")


def agent_options(command: _F) -> _F:
    """What every command here takes: `--admin-socket` or `-c`, `--timeout`, `--output`."""
    return admin_socket_option(timeout_option(output_option(command)))


def watch_option(command: _F) -> _F:
    """`--watch`; the command's parameter is `watch`."""
    return click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")(
        command
    )


@click.command()
@agent_options
@watch_option
@click.option("--metrics", is_flag=True, help="The metrics in the Prometheus text format instead.")
def status(
    admin_socket: Path, timeout: float, output: Format, *, watch: bool, metrics: bool
) -> None:
    """Show what the agent is doing: authorities, entries, and who is connected."""
    with AdminClient(admin_socket, timeout) as client:
        if metrics:
            click.echo(client.metrics(), nl=False)
        else:
            _show(client.status, output, repeat=watch)


@click.command()
@agent_options
@watch_option
@click.argument("pid", type=Pid())
@click.pass_context
def explain(
    ctx: click.Context,
    admin_socket: Path,
    timeout: float,
    output: Format,
    pid: int,
    *,
    watch: bool,
) -> None:
    """Explain why process PID gets, or does not get, each identity. Exit code 1 if it gets none.

    It tells what the kernel says of the process, what each attestor found, which entries match and
    which nearly do, what the process was served, and the last refusals of it and of its user.
    """
    with AdminClient(admin_socket, timeout) as client:
        explanation = _show(lambda: client.explain(pid), output, repeat=watch)
    if explanation.get("refused") or not explanation.get("verdict", {}).get("matched"):
        click.echo(f"vouchd: process {pid} gets no identity; see why above", err=True)
        ctx.exit(1)


@click.group()
def authority() -> None:
    """Look at the signing authorities, or rotate them before their time.

    To replace an authority whose key may be in wrong hands, for each kind: prepare, activate, taint
    the retired one (which replaces all that it signed), and revoke it when every verifier has seen
    the new bundle.
    """


@authority.command("show")
@agent_options
def show_authorities(admin_socket: Path, timeout: float, output: Format) -> None:
    """Show all authorities, their states and what happens to them next."""
    with AdminClient(admin_socket, timeout) as client:
        show(client.status()["authority"], output, _CLOCK.now())


_KIND = click.argument("kind", type=click.Choice([*map(str, AuthorityKind)]))


@authority.command("prepare")
@agent_options
@_KIND
def prepare_authority(admin_socket: Path, timeout: float, output: Format, kind: str) -> None:
    """Make a successor now. It is in the bundle from then on, and does not sign yet."""
    with AdminClient(admin_socket, timeout) as client:
        show(client.prepare_authority(kind), output, _CLOCK.now())


@authority.command("activate")
@agent_options
@_KIND
def activate_authority(admin_socket: Path, timeout: float, output: Format, kind: str) -> None:
    """Have the prepared authority sign now; the active one is retired and stays in the bundle."""
    with AdminClient(admin_socket, timeout) as client:
        show(client.activate_authority(kind), output, _CLOCK.now())


_ID = click.argument("authority_id", metavar="ID")


@authority.command("taint")
@agent_options
@_ID
def taint_authority(admin_socket: Path, timeout: float, output: Format, authority_id: str) -> None:
    """Replace at once every SVID that this authority signed. It stays in the bundle."""
    with AdminClient(admin_socket, timeout) as client:
        show(client.taint_authority(authority_id), output, _CLOCK.now())


@authority.command("revoke")
@agent_options
@_ID
def revoke_authority(admin_socket: Path, timeout: float, output: Format, authority_id: str) -> None:
    """Take a tainted authority out of the bundle: nothing that it signed is valid any more."""
    with AdminClient(admin_socket, timeout) as client:
        show(client.revoke_authority(authority_id), output, _CLOCK.now())


def _show(ask: Callable[[], dict[str, Any]], output: Format, *, repeat: bool) -> dict[str, Any]:
    """Show an answer, once or every second; the first one."""
    answer = ask()
    if not repeat:
        show(answer, output, _CLOCK.now())
        return answer
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        if output is Format.JSON:
            for each in _answers(ask):
                show(each, output, _CLOCK.now())
        with Live(console=Console(highlight=False), auto_refresh=False, screen=True) as live:
            for each in _answers(ask):
                live.update(to_text(each, _CLOCK.now()), refresh=True)
    return answer


def _answers(ask: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """An answer every second, for ever. An agent that restarts meanwhile is waited for."""
    pause = threading.Event()
    while True:
        try:
            yield ask()
        except UnavailableError as error:
            yield {"no_answer": str(error)}
        pause.wait(_REFRESH_SECONDS)
