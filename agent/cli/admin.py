"""The commands that call the admin API of a running agent: status, explain, authority."""

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
from agent.cli.output import Format, show
from agent.cli.text import to_text
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
    """Add `--admin-socket`, `-c`, `--timeout` and `--output`."""
    return admin_socket_option(timeout_option(output_option(command)))


def watch_option(command: _F) -> _F:
    """Add `--watch`; the parameter is `watch`."""
    return click.option("--watch", is_flag=True, help="Refresh every second, until Ctrl-C.")(
        command
    )


@click.command(epilog="Example: vouchd status --watch")
@agent_options
@watch_option
@click.option("--metrics", is_flag=True, help="Print the metrics in the Prometheus text format.")
def status(
    admin_socket: Path, timeout: float, output: Format, *, watch: bool, metrics: bool
) -> None:
    """Show authorities, entries and connected callers."""
    with AdminClient(admin_socket, timeout) as client:
        if metrics:
            click.echo(client.metrics(), nl=False)
        else:
            _show(client.status, output, repeat=watch)


@click.command(epilog="Example: vouchd explain 4711")
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
    """Explain which identities process PID gets, and why.

    Prints the kernel's evidence, the selectors of each attestor, the entries that match, the
    nearest entries that do not, and the last refusals of the process and of its user. The exit code
    is 1 if the process gets no identity.
    """
    with AdminClient(admin_socket, timeout) as client:
        explanation = _show(lambda: client.explain(pid), output, repeat=watch)
    if explanation.get("refused") or not explanation.get("verdict", {}).get("matched"):
        click.echo(f"vouchd: process {pid} gets no identity; the reasons are above", err=True)
        ctx.exit(1)


@click.group()
def authority() -> None:
    """Show or rotate the signing authorities.

    To replace an authority with a compromised key, for each kind: prepare a successor, activate it,
    taint the retired authority, which renews everything it signed, and revoke it when all verifiers
    have the new bundle.
    """


@authority.command("show", epilog="Example: vouchd authority show")
@agent_options
def show_authorities(admin_socket: Path, timeout: float, output: Format) -> None:
    """Show all authorities, their states and their next steps."""
    with AdminClient(admin_socket, timeout) as client:
        show(client.status()["authority"], output, _CLOCK.now())


_KIND = click.argument("kind", type=click.Choice([*map(str, AuthorityKind)]))


@authority.command("prepare", epilog="Example: vouchd authority prepare x509")
@agent_options
@_KIND
def prepare_authority(admin_socket: Path, timeout: float, output: Format, kind: str) -> None:
    """Create a successor now. The bundle contains it, and it does not sign yet."""
    with AdminClient(admin_socket, timeout) as client:
        show(client.prepare_authority(kind), output, _CLOCK.now())


@authority.command("activate", epilog="Example: vouchd authority activate x509")
@agent_options
@_KIND
def activate_authority(admin_socket: Path, timeout: float, output: Format, kind: str) -> None:
    """Sign with the prepared authority from now on.

    The former authority is retired and stays in the bundle.
    """
    with AdminClient(admin_socket, timeout) as client:
        show(client.activate_authority(kind), output, _CLOCK.now())


_ID = click.argument("authority_id", metavar="AUTHORITY_ID")


@authority.command("taint", epilog="Example: vouchd authority taint AUTHORITY_ID")
@agent_options
@_ID
def taint_authority(admin_socket: Path, timeout: float, output: Format, authority_id: str) -> None:
    """Renew every SVID that a retired authority signed, at once.

    The authority stays in the bundle. `vouchd authority show` prints the AUTHORITY_ID.
    """
    with AdminClient(admin_socket, timeout) as client:
        show(client.taint_authority(authority_id), output, _CLOCK.now())


@authority.command("revoke", epilog="Example: vouchd authority revoke AUTHORITY_ID")
@agent_options
@_ID
def revoke_authority(admin_socket: Path, timeout: float, output: Format, authority_id: str) -> None:
    """Remove a tainted authority from the bundle.

    SVIDs that it signed are not valid any more.
    """
    with AdminClient(admin_socket, timeout) as client:
        show(client.revoke_authority(authority_id), output, _CLOCK.now())


def _show(ask: Callable[[], dict[str, Any]], output: Format, *, repeat: bool) -> dict[str, Any]:
    """Show an answer, once or every second; return the first answer."""
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
    """Yield an answer every second; an error instead while the agent does not answer."""
    pause = threading.Event()
    while True:
        try:
            yield ask()
        except UnavailableError as error:
            yield {"no_answer": str(error)}
        pause.wait(_REFRESH_SECONDS)
