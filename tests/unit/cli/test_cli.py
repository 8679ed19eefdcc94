"""The commands that need no agent, and rules for all commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from agent.cli import main as cli
from agent.cli.output import Data, printable, relative, to_json, to_text

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

ENTRIES = """\
entries:
  - {id: web, spiffe_id: /web, selectors: [unix:uid:1000, unix:path:/usr/bin/web]}
  - {id: job, spiffe_id: /job, selectors: [unix:uid:1000, unix:gid:7, unix:path:/usr/bin/job]}
  - {id: old, spiffe_id: /old, selectors: [unix:uid:2000], expires_at: 2020-01-01T00:00:00Z}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "entries.yaml").write_text(ENTRIES)
    path = tmp_path / "agent.yaml"
    path.write_text("trust_domain: example.org\ndata_dir: data\nentries: [entries.yaml]\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.execute([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- all commands --------------------------------------------------------------------------------


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


# --- the socket -----------------------------------------------------------------------


def test_the_error_about_a_wrong_endpoint_names_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "/run/a.sock")
    code, _out, err = run(capsys, "health")
    assert code == 2
    assert err == (
        "vouchd: SPIFFE_ENDPOINT_SOCKET: '/run/a.sock' is a path where a URI is wanted: write"
        " unix:///run/a.sock (see vouchd health --help)\n"
    )


def test_the_socket_option_overrides_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///other")
    code, _out, err = run(capsys, "health", "--socket", "/nowhere/x")
    assert code == 1
    assert "there is no socket at /nowhere/x" in err


@pytest.mark.parametrize("option", ["--socket", "--admin-socket"])
def test_a_socket_option_takes_a_uri(capsys: pytest.CaptureFixture[str], option: str) -> None:
    command_ = "health" if option == "--socket" else "status"
    code, _out, err = run(capsys, command_, option, "unix:///nowhere/a%20b")
    assert code == 1
    assert "there is no socket at /nowhere/a b" in err
    code, _out, err = run(capsys, command_, option, "unix://nowhere")
    assert code == 2
    assert f"{option}: 'unix://nowhere' has no absolute path" in err


# --- check ---------------------------------------------------------------------------------------


def test_check_counts_entries_and_succeeds_with_warnings(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, out, err = run(capsys, "check", "-c", config)
    entries = config.with_name("entries.yaml")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{entries}:4:72: warning: expired at 2020-01-01T00:00:00+00:00: it matches nothing",
        "3 entries in 1 file are valid",
    ]


def test_check_reports_every_problem_with_its_place(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    entries = config.with_name("entries.yaml")
    entries.write_text("entries:\n  - {spiffe_id: x, selectors: []}\n  - {spiffe_id: /y}\n")
    code, out, _err = run(capsys, "check", "-c", config)
    assert code == 2
    places = [line.split(": ")[0] for line in out.splitlines()]
    assert places == [f"{entries}:2:17", f"{entries}:2:31", f"{entries}:3:5"]


def test_check_prints_json(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    config.write_text("trust_domain: Example.org\nlogg: {}\n")
    code, out, _err = run(capsys, "check", "-c", config, "--output", "json")
    assert code == 2
    problems = json.loads(out)
    assert [(each["line"], each["column"], each["severity"]) for each in problems] == [
        (1, 15, "error"),
        (2, 1, "error"),
    ]
    assert all(each["file"] == str(config) and each["message"] for each in problems)


def test_run_prints_every_problem_of_its_files(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    config.write_text("trust_domain: Example.org\nlogg: {}\n")
    code, out, err = run(capsys, "run", "-c", config)
    assert (code, out) == (2, "")
    assert [line.rpartition(": ")[0].split(": ")[0] for line in err.splitlines()] == [
        f"{config}:1:15",
        f"{config}:2:1",
    ]


# --- entries -------------------------------------------------------------------------------------


def test_entries_list_keeps_the_order(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    code, out, _err = run(capsys, "entries", "list", "-c", config, "--output", "json")
    assert code == 0
    listed = json.loads(out)["entries"]
    assert [entry["id"] for entry in listed] == ["web", "job", "old"]
    assert listed[0]["spiffe_id"] == "spiffe://example.org/web"
    assert listed[0]["selectors"] == ["unix:path:/usr/bin/web", "unix:uid:1000"]
    assert listed[0]["origin"] == f"{config.with_name('entries.yaml')}:2"
    assert listed[2]["expires_at"] == "2020-01-01T00:00:00Z"


def test_match_prints_matching_and_nearest_entries(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    selectors = ["unix:uid:1000", "unix:path:/usr/bin/web", "unix:user:web"]
    code, out, _err = run(capsys, "entries", "match", "-c", config, *selectors, "--output", "json")
    assert code == 0
    answer = json.loads(out)
    assert [entry["id"] for entry in answer["matched"]] == ["web"]
    assert answer["nearest"][0]["missing_selectors"] == ["unix:gid:7", "unix:path:/usr/bin/job"]


def test_match_prints_the_missing_selectors_of_the_nearest_entries(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, out, err = run(capsys, "entries", "match", "-c", config, "unix:uid:1000", "unix:gid:7")
    assert code == 1
    assert err == "vouchd: no entry matches these selectors; the missing ones are above\n"
    assert "missing selectors  unix:path:/usr/bin/web" in out
    assert "missing selectors  unix:path:/usr/bin/job" in out
    assert "/old" not in out  # none of its selectors is there


def test_match_prints_that_an_entry_has_expired(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, out, _err = run(capsys, "entries", "match", "-c", config, "unix:uid:2000")
    assert code == 1
    assert "expired at  2020-01-01 00:00:00 UTC" in out


def test_match_refuses_text_that_is_no_selector(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, _out, err = run(capsys, "entries", "match", "-c", config, "1000")
    assert code == 2
    assert "selector '1000' is not of the form type:value, such as unix:uid:1000" in err


# --- output --------------------------------------------------------------------------------------


def test_text_has_labels_with_blanks_and_no_empty_members() -> None:
    data: Data = {
        "spiffe_id": "spiffe://td/x",
        "hint": "",
        "serving": True,
        "inner": {"n": 1},
        "many": [{"a": 1, "bc": "x"}, {}],
    }
    assert to_text(data, NOW).plain.splitlines() == [
        "spiffe id  spiffe://td/x",
        "serving    yes",
        "inner",
        "  n  1",
        "many",
        "  - a   1",
        "    bc  x",
        "  - ",
    ]


def test_a_short_list_is_on_one_line_and_a_long_one_is_not() -> None:
    assert to_text({"x": [1, 2]}, NOW).plain == "x  1, 2"
    long = ["a" * 60, "b" * 60]
    assert to_text({"x": long}, NOW).plain.splitlines() == [f"x  {long[0]}", f"   {long[1]}"]


def test_text_of_a_process_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[2J\nb\udcff") == "a\\x1b[2J\\nb\\udcff"
    assert "\x1b" not in to_text({"x": "\x1b[2J"}, NOW).plain


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "in 0 seconds"),
        (1, "in 1 second"),
        (-59, "59 seconds ago"),
        (3599, "in 59 minutes"),
        (-7200, "2 hours ago"),
        (86400 * 3, "in 3 days"),
    ],
)
def test_a_time_has_its_distance_in_the_largest_unit(seconds: int, words: str) -> None:
    assert relative(NOW + timedelta(seconds=seconds), NOW) == words


def test_json_is_one_line_with_times_in_utc() -> None:
    east = NOW.astimezone(tz=None)
    assert to_json({"at": east, "x": "a\nb"}) == '{"at": "2026-01-02T03:04:05Z", "x": "a\\nb"}'
