"""Rules for all commands: help, errors, exit codes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agent.cli import main as cli
from tests.support.cli import run


def test_an_internal_error_is_one_sentence_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr("agent.cli.config_file.load_settings", broken)
    code, out, err = run(capsys, "check", "-c", config)
    assert (code, out) == (1, "")
    assert err.startswith("vouchd: internal error (ZeroDivisionError: of the test);")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "Out of memory: allow the agent more memory (MemoryMax="),
        (OSError(24, "Too many open files"), "Too many open files: allow the agent more"),
    ],
)
def test_a_lack_of_memory_or_descriptors_is_not_reported_as_a_defect(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config: Path,
    error: Exception,
    message: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("agent.cli.config_file.load_settings", fail)
    code, out, err = run(capsys, "check", "-c", config)
    assert (code, out) == (1, "")
    assert err.startswith(f"vouchd: {message}")
    assert err.count("\n") == 1


def test_ctrl_c_prints_nothing_and_exits_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.cli.config_file.load_settings", interrupted)
    code, out, err = run(capsys, "check", "-c", config)
    assert (code, out.strip(), err.strip()) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fetch", "x59"], "no such command 'x59'. Did you mean 'x509'?"),
        (["helth"], "no such command 'helth'"),
        (["fetch", "jwt"], "missing option '-a' / '--audience'"),
        (["run"], "missing option '-c' / '--config'"),
        (
            ["health", "--timeout", "soon"],
            "invalid value for '--timeout': 'soon' is not a duration such as 5s or 2m",
        ),
        (
            ["health", "--timeout", "-1s"],
            "invalid value for '--timeout': '-1s' is not a duration such as 5s or 2m",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"vouchd: {re.escape(sentence)} \(see vouchd[a-z ]* --help\)\n", err)


def test_vouchd_without_a_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert all(
        f"\n  {name} " in err for name in cli.commands.list_commands(click.Context(cli.commands))
    )


def all_commands(
    group: click.Group = cli.commands, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, with its path such as `vouchd fetch x509`."""
    context = click.Context(
        group, info_name="vouchd" if parent is None else group.name, parent=parent
    )
    for name in group.list_commands(context):
        command_ = group.get_command(context, name)
        assert command_ is not None
        if isinstance(command_, click.Group):
            yield from all_commands(command_, context)
        else:
            yield f"{context.command_path} {name}", command_


@pytest.mark.parametrize(("path", "command_"), list(all_commands()))
def test_every_command_has_help_and_an_example_with_its_options(
    path: str, command_: click.Command
) -> None:
    assert command_.help
    assert re.match(r"[A-Z].*[.:]", command_.help)
    example = (command_.epilog or "").removeprefix("Example: ")
    assert example.startswith(f"{path} ") or example == path
    words = shlex.split(example.removeprefix(path))
    options = {o for p in command_.params if isinstance(p, click.Option) for o in p.opts}
    assert {word for word in words if word.startswith("-")} <= options
    assert all(p.help for p in command_.params if isinstance(p, click.Option))
