"""gRPC errors of the Workload API become sentences with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import pytest

from agent.cli import main as cli
from agent.client.workload import WorkloadClient
from agent.errors import NoIdentityError, RequestError, UnavailableError, VouchdError

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
    """A stream that fails or ends at once."""

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
    """A channel on which every call fails alike."""

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
        """Close nothing."""


def client_of(channel: _Channel, path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkloadClient:
    monkeypatch.setattr("grpc.insecure_channel", lambda _target: channel)
    return WorkloadClient(path, 5)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, NoIdentityError, "no identity issued: no registration"),
        (grpc.StatusCode.INVALID_ARGUMENT, RequestError, "the agent refused the request: why"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError, "did not answer within 5 s"),
        (grpc.StatusCode.UNIMPLEMENTED, UnavailableError, "does not serve this part"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UnavailableError, "too large: why; .*response_bytes"),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError, "there is no socket at"),
        (grpc.StatusCode.INTERNAL, UnavailableError, "there is no socket at"),
    ],
)
def test_each_status_code_has_its_message(
    code: grpc.StatusCode,
    kind: type[VouchdError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = client_of(_Channel(_Failure(code, "why")), tmp_path / "s", monkeypatch)
    for call in (client.fetch_x509_svids, lambda: client.fetch_jwt_svids(["a"]), client.health):
        with pytest.raises(kind, match=message):
            call()


def test_a_stream_that_ends_without_a_message_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = _Channel()
    client = client_of(channel, tmp_path / "s", monkeypatch)
    with pytest.raises(UnavailableError, match="ended the stream"):
        client.fetch_x509_bundles()
    assert channel.stream.cancelled


def test_the_target_encodes_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[str] = []
    monkeypatch.setattr("grpc.insecure_channel", targets.append)
    WorkloadClient(tmp_path / "a%b?c#d", 5)
    assert targets == [f"unix:{tmp_path}/a%25b%3Fc%23d"]


def test_health_fails_while_the_agent_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WorkloadClient, "health", lambda _self: "NOT_SERVING")
    assert cli.execute(["health", "--socket", "/s"]) == 1
    error = capsys.readouterr().err
    assert error == "vouchd: the agent at /s reports NOT_SERVING; see its log, or vouchd status\n"
