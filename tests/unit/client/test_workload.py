"""Failures of the Workload API as sentences for people. The rest is in test_cli_agent.py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import pytest

from agent.cli import main as cli
from agent.client.workload import WorkloadClient, why_unreachable
from agent.errors import NoIdentityError, RequestError, UnavailableError, VouchdError
from tests.support.pids import become, fork, reap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Failure(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class _Stream:
    """Gives its messages, then fails or ends."""

    def __init__(self, failure: _Failure | None) -> None:
        self.failure = failure
        self.cancelled = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> NoReturn:
        raise self.failure or StopIteration

    def cancel(self) -> None:
        self.cancelled = True


class _Channel:
    """Answers every call with one failure."""

    def __init__(self, failure: _Failure | None = None) -> None:
        self.stream = _Stream(failure)

    def unary_unary(self, *_: object) -> Any:
        def call(*_: object, **__: object) -> NoReturn:
            assert self.stream.failure is not None
            raise self.stream.failure

        return call

    def unary_stream(self, *_: object) -> Any:
        return lambda *_, **__: self.stream

    def close(self) -> None:
        """Nothing was opened."""


def client_of(channel: _Channel, path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkloadClient:
    monkeypatch.setattr("grpc.insecure_channel", lambda _target: channel)
    return WorkloadClient(path, 5)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, NoIdentityError, "no identity issued: no registration"),
        (grpc.StatusCode.INVALID_ARGUMENT, RequestError, "the agent refused the request: why"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError, "did not answer within 5 s"),
        (grpc.StatusCode.UNIMPLEMENTED, UnavailableError, "does not serve this part"),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError, "there is no socket at"),
        (grpc.StatusCode.INTERNAL, UnavailableError, "there is no socket at"),
    ],
)
def test_each_status_has_its_sentence(
    code: grpc.StatusCode,
    kind: type[VouchdError],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = client_of(_Channel(_Failure(code, "why")), tmp_path / "s", monkeypatch)
    for call in (client.fetch_x509_svids, lambda: client.fetch_jwt_svids(["a"]), client.health):
        with pytest.raises(kind, match=words):
            call()


def test_a_stream_that_ends_without_an_answer_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = _Channel()
    client = client_of(channel, tmp_path / "s", monkeypatch)
    with pytest.raises(UnavailableError, match="ended the stream"):
        client.fetch_x509_bundles()
    assert channel.stream.cancelled


def test_the_path_is_a_path_whatever_characters_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[str] = []
    monkeypatch.setattr("grpc.insecure_channel", targets.append)
    WorkloadClient(tmp_path / "a%b?c#d", 5)
    assert targets == [f"unix:{tmp_path}/a%25b%3Fc%23d"]


def test_an_agent_that_does_not_serve_fails_the_health_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WorkloadClient, "health", lambda _self: "NOT_SERVING")
    assert cli.execute(["health", "--socket", "/s"]) == 1
    assert capsys.readouterr().err == (
        "vouchd: the agent at /s says NOT_SERVING; look at its log\n"
    )


@pytest.mark.system
def test_a_socket_in_a_closed_directory_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    read_end, write_end = os.pipe()

    def behave() -> None:
        become(54321)
        os.write(write_end, str(why_unreachable(tmp_path / "s")).encode())

    child = fork(behave)
    os.close(write_end)
    with os.fdopen(read_end) as output:
        assert output.read().startswith(f"no permission to connect to {tmp_path}/s: ask the")
    assert reap(child) == 0
