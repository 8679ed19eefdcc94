"""Options that several commands share, and where the agent's socket is."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.output import Format
from agent.client.endpoint import ENDPOINT_VARIABLE, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SOCKET = Path("/run/vouchd/agent.sock")
DEFAULT_ADMIN_SOCKET = Path("/run/vouchd/admin.sock")

_CONFIG = "agent.cli.options.config"
# PID_MAX_LIMIT of a 64-bit kernel: proc_sys_kernel(5).
_MAX_PID = 1 << 22
_UNITS = {"s": 1.0, "m": 60.0}

_F = TypeVar("_F", bound="Callable[..., Any]")


class Pid(click.ParamType[int]):
    """The PID of a process, as a number that the kernel could have given."""

    name = "pid"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read it."""
        text = str(value)
        if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= _MAX_PID:
            self.fail(f"{text!r} is not the PID of a process", param, ctx)
        return int(text)


def _seconds(text: str) -> float:
    """Read `5s`, `2m`, or a plain number of seconds."""
    unit = _UNITS.get(text[-1:])
    try:
        seconds = float(text if unit is None else text[:-1]) * (unit or 1)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{text!r} is not a duration such as 5s or 2m")
    return seconds


def socket_option(command: _F) -> _F:
    """`--socket PATH`; the command's parameter is `socket`."""
    return click.option(
        "--socket",
        metavar="PATH",
        callback=_find_socket,
        help=f"The agent's socket [default: ${ENDPOINT_VARIABLE}, else {DEFAULT_SOCKET}].",
    )(command)


def _find_socket(ctx: click.Context, _param: click.Parameter, value: str | None) -> Path:
    try:
        # The standard's URI is taken too: people paste what is in the variable.
        if value is not None:
            return parse_endpoint(value) if value.startswith("unix:") else Path(value)
        from_environment = os.environ.get(ENDPOINT_VARIABLE)
        return parse_endpoint(from_environment) if from_environment else DEFAULT_SOCKET
    except ValueError as error:
        origin = "--socket" if value is not None else ENDPOINT_VARIABLE
        raise click.UsageError(f"{origin}: {error}", ctx) from None


def admin_socket_option(command: _F) -> _F:
    """`--admin-socket PATH` or `-c FILE`; the command's parameter is `admin_socket`."""
    command = click.option(
        "-c",
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_remember_config,
        help="The agent's configuration, to take the socket's path from.",
    )(command)
    return click.option(
        "--admin-socket",
        metavar="PATH",
        type=click.Path(path_type=Path),
        callback=_find_admin_socket,
        help=f"The agent's administration socket [default: {DEFAULT_ADMIN_SOCKET}].",
    )(command)


def _remember_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    ctx.meta[_CONFIG] = value


def _find_admin_socket(ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path:
    config: Path | None = ctx.meta.get(_CONFIG)
    if value is not None or config is None:
        return value or DEFAULT_ADMIN_SOCKET
    # Here, because the daemon's modules take longer to load than most commands run.
    from agent.cli.config_file import admin_socket_of  # noqa: PLC0415

    return admin_socket_of(config)


def timeout_option(command: _F) -> _F:
    """`--timeout DURATION`; the command's parameter is `timeout`, in seconds."""
    return click.option(
        "--timeout",
        type=_seconds,
        default="5s",
        show_default=True,
        metavar="DURATION",
        help="How long the agent may take to answer.",
    )(command)


def output_option(command: _F) -> _F:
    """`--output text|json`; the command's parameter is `output`."""
    return click.option(
        "--output",
        type=click.Choice([*map(str, Format)]),
        callback=lambda _ctx, _param, value: Format(value),
        default=str(Format.TEXT),
        show_default=True,
        help="For people, or for programs.",
    )(command)


def config_option(command: _F) -> _F:
    """`-c FILE`; the command's parameter is `config`."""
    return click.option(
        "-c",
        "--config",
        required=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The agent's configuration, such as /etc/vouchd/agent.yaml.",
    )(command)


def audience_option(*, multiple: bool) -> Callable[[_F], _F]:
    """`-a AUDIENCE`; the command's parameter is `audience`."""
    return click.option(
        "-a",
        "--audience",
        required=True,
        multiple=multiple,
        metavar="AUDIENCE",
        help="Whom the token is meant for" + ("; may be repeated." if multiple else "."),
    )
