"""Start and end of the benchmark's servers, and the inputs that it refuses."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.bench import bench
from tests.bench.calls import settle
from tests.bench.findings import RefusedError
from tests.bench.servers import GATED_PROGRAM, Server, agent, baseline, other_server, started, x509
from tests.bench.wire import connected
from tests.support.agent import REPOSITORY


@pytest.mark.parametrize("gated", [False, True])
def test_baseline_answers_each_call(gated: bool) -> None:  # noqa: FBT001
    with (
        baseline({"FetchX509SVID": b"an answer"}, gated=gated) as server,
        connected(server.socket) as connection,
    ):
        assert connection.fetch(x509()) == b"an answer"
        assert os.getsid(server.pid) == server.pid


def test_the_bare_baseline_imports_nothing_of_the_agent() -> None:
    program = "import sys, tests.bench.baseline; print(*sys.modules, sep='\\n')"
    modules = subprocess.check_output([sys.executable, "-c", program], cwd=REPOSITORY, text=True)
    assert not {"agent", "structlog", "pydantic"} & set(modules.split())


def test_error_about_a_crashed_server_names_its_output(tmp_path: Path) -> None:
    with (
        pytest.raises(click.ClickException, match=r"gated.py did not print .* exit status is 1"),
        started(str(tmp_path / "s"), tmp_path / "none", GATED_PROGRAM),
    ):
        pass


def test_process_of_another_server_is_found_by_its_listening_socket() -> None:
    with agent() as (ours, _running):
        assert other_server(ours.socket) == Server(name="other", socket=ours.socket, pid=ours.pid)
        with pytest.raises(click.UsageError, match="no process 4194305 "):
            other_server(ours.socket, 4_194_305)


def test_process_that_does_not_serve_is_refused() -> None:
    with agent() as (ours, _running), subprocess.Popen(["sleep", "60"]) as idle:
        try:
            settle(Server(name="idle", socket="", pid=idle.pid))
            with pytest.raises(RefusedError, match=f"process {idle.pid} took no CPU time"):
                other_server(ours.socket, idle.pid)
        finally:
            idle.kill()


def test_error_about_a_socket_without_a_listener_names_the_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with pytest.raises(RefusedError, match=f"no process listens on {path}"):
        other_server(path)


@pytest.mark.parametrize(
    "options",
    [
        ("edits", "--agent-socket", "/s"),
        ("calls", "--pid", "1"),
        ("calls", "--write-reference"),
        ("--write-reference", "--results", "r.json"),
        ("--write-reference", "--agent-socket", "/s"),
    ],
)
def test_options_without_effect_are_refused(options: tuple[str, ...]) -> None:
    outcome = CliRunner().invoke(bench.main, options)
    assert outcome.exit_code == 2
    assert "--agent-socket is for" in outcome.output or "goes with" in outcome.output


def test_low_limit_of_open_files_is_an_error_before_the_run(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench", "streams", "--results", tmp_path / "r.json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000)),
    )
    assert (outcome.returncode, outcome.stderr) == (
        2,
        "Error: streams needs 8712 open files, and 1000 are allowed: raise ulimit -n\n",
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_bench_and_servers_cleanly(number: signal.Signals, status: int) -> None:
    command = [sys.executable, "-c", _BENCH]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folders = [Path(process.stdout.readline().strip()) for _ in range(2)]
        assert all(folder.exists() for folder in folders)
        process.send_signal(number)
        _out, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (status, "")
    assert not any(folder.exists() for folder in folders)


_BENCH = """
import pathlib, signal
from tests.bench import bench, servers
bench._end_by_signals()
with servers.agent() as (ours, _), servers.baseline({}) as bare:
    for each in (ours, bare):
        print(pathlib.Path(each.socket).parent, flush=True)
    signal.pause()
"""
