"""Options that several commands share."""

from __future__ import annotations

import pytest

from tests.support.cli import run


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
