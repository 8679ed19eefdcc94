"""Options that several commands share, and the default paths of the sockets."""

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
    """A PID: a number between 1 and the kernel's PID_MAX_LIMIT."""

    name = "pid"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse the text of the command line."""
        text = str(value)
        if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= _MAX_PID:
            self.fail(f"{text!r} is not a PID, such as ps shows", param, ctx)
        return int(text)


def _seconds(text: str) -> float:
    """Parse `5s`, `2m`, or a plain number of seconds."""
    unit = _UNITS.get(text[-1:])
    try:
        seconds = float(text if unit is None else text[:-1]) * (unit or 1)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{text!r} is not a duration such as 5s or 2m")
    return seconds


def socket_option(command: _F) -> _F:
    """Add `--socket PATH`; the parameter is `socket`."""
    return click.option(
        "--socket",
        metavar="PATH",
        callback=_find_socket,
        help="Socket of the agent, as a path or unix:// URI"
        f" [default: ${ENDPOINT_VARIABLE}, else {DEFAULT_SOCKET}].",
    )(command)


def _find_socket(ctx: click.Context, _param: click.Parameter, value: str | None) -> Path:
    try:
        if value is not None:
            return _path_of(value)
        from_environment = os.environ.get(ENDPOINT_VARIABLE)
        return parse_endpoint(from_environment) if from_environment else DEFAULT_SOCKET
    except ValueError as error:
        origin = "--socket" if value is not None else ENDPOINT_VARIABLE
        raise click.UsageError(f"{origin}: {error}", ctx) from None


def _path_of(text: str) -> Path:
    """Read a path, or the URI that SPIFFE_ENDPOINT_SOCKET would hold."""
    return parse_endpoint(text) if text.startswith("unix:") else Path(text)


def admin_socket_option(command: _F) -> _F:
    """Add `--admin-socket PATH` and `-c FILE`; the parameter is `admin_socket`."""
    command = click.option(
        "-c",
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_remember_config,
        help="Configuration of the agent, which names the admin socket.",
    )(command)
    return click.option(
        "--admin-socket",
        metavar="PATH",
        callback=_find_admin_socket,
        help="Admin socket of the agent, as a path or unix:// URI"
        f" [default: {DEFAULT_ADMIN_SOCKET}].",
    )(command)


def _remember_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    ctx.meta[_CONFIG] = value


def _find_admin_socket(ctx: click.Context, _param: click.Parameter, value: str | None) -> Path:
    config: Path | None = ctx.meta.get(_CONFIG)
    if value is not None:
        try:
            return _path_of(value)
        except ValueError as error:
            raise click.UsageError(f"--admin-socket: {error}", ctx) from None
    if config is None:
        return DEFAULT_ADMIN_SOCKET
    # Imported here: the settings take longer to import than most commands run.
    from agent.cli.config_file import admin_socket_of  # noqa: PLC0415

    return admin_socket_of(config)


def timeout_option(command: _F) -> _F:
    """Add `--timeout DURATION`; the parameter is `timeout`, in seconds."""
    return click.option(
        "--timeout",
        type=_seconds,
        default="5s",
        show_default=True,
        metavar="DURATION",
        help="Time limit for the agent's answer, such as 5s or 2m.",
    )(command)


def output_option(command: _F) -> _F:
    """Add `--output text|json`; the parameter is `output`."""
    return click.option(
        "--output",
        type=click.Choice([*map(str, Format)]),
        callback=lambda _ctx, _param, value: Format(value),
        default=str(Format.TEXT),
        show_default=True,
        help="Text for people, or JSON for programs.",
    )(command)


def config_option(command: _F) -> _F:
    """Add `-c FILE`; the parameter is `config`."""
    return click.option(
        "-c",
        "--config",
        required=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Configuration of the agent, such as /etc/vouchd/agent.yaml.",
    )(command)


def audience_option(*, multiple: bool) -> Callable[[_F], _F]:
    """Add `-a AUDIENCE`; the parameter is `audience`."""
    return click.option(
        "-a",
        "--audience",
        required=True,
        multiple=multiple,
        metavar="AUDIENCE",
        help="Audience of the token: its recipient" + ("; may be repeated." if multiple else "."),
    )
