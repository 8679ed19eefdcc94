"""The command line `vouchd`: the table of commands, error messages, exit codes.

Exit codes: 0 success, 1 refused or failed, 2 wrong usage or invalid configuration, 130 Ctrl-C. An
error is one sentence on stderr with the way out, never a traceback.

A command's module is imported when the command is used: importing gRPC takes longer than most
commands run.
"""

from __future__ import annotations

import errno
import gc
import importlib
import sys
from typing import TYPE_CHECKING, NoReturn, cast

import click

from agent.errors import ConfigError, VouchdError, with_remedy
from agent.gc_pause import gc_paused

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_DAEMON = "run"
_COMMANDS: Mapping[str, str] = {
    _DAEMON: "agent.cli.run",
    "check": "agent.cli.run",
    "fetch": "agent.cli.fetch",
    "watch": "agent.cli.fetch",
    "validate": "agent.cli.fetch",
    "entries": "agent.cli.entries",
    "status": "agent.cli.admin",
    "explain": "agent.cli.admin",
    "authority": "agent.cli.admin",
    "health": "agent.cli.fetch",
    "who": "agent.cli.who",
}


class _LazyGroup(click.Group):
    """A group that imports a command's module on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        with gc_paused():
            module = importlib.import_module(_COMMANDS[cmd_name])
            if cmd_name == _DAEMON:
                gc.freeze()  # else the first collection would walk all that was imported
        return cast("click.Command", getattr(module, cmd_name))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vouchd", prog_name="vouchd")
def commands() -> None:
    """SPIFFE workload attestation agent for Linux.

    `vouchd run` is the agent. fetch, watch, validate and health act as a workload. status, explain
    and authority ask a running agent. check, who and most of entries need no agent.
    """


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        return commands.main(arguments, prog_name="vouchd", standalone_mode=False) or 0
    except click.Abort:  # Ctrl-C
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - every error becomes one sentence
        message, code = _message_and_code(error)
        click.echo(message, err=True)
        return code


def _message_and_code(error: Exception) -> tuple[str, int]:
    match error:
        case click.exceptions.NoArgsIsHelpError() | ConfigError():
            return str(error), EXIT_USAGE
        case click.UsageError():
            return f"vouchd: {_usage_sentence(error)}", EXIT_USAGE
        case VouchdError() | click.ClickException():
            return f"vouchd: {error}", EXIT_FAILED
        case OSError(errno=errno.EMFILE | errno.ENFILE | errno.ENOMEM | errno.ENOSPC):
            return f"vouchd: {with_remedy(error)}", EXIT_FAILED
        case MemoryError():
            return f"vouchd: {with_remedy(OSError(errno.ENOMEM, 'Out of memory'))}", EXIT_FAILED
        case _:
            return (
                f"vouchd: internal error ({type(error).__name__}: {error}); this is a defect of"
                " vouchd: please report it with the command"
            ), EXIT_FAILED


def _usage_sentence(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "vouchd"
    sentence = " ".join(error.format_message().split())
    # click writes "Missing option …"; sentences of this project may begin with a name.
    if sentence[1:2].islower():
        sentence = sentence[:1].lower() + sentence[1:]
    return f"{sentence.rstrip('.')} (see {command} --help)"
