"""The admin API: which callers may use it, and how each call is logged and ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from agent.admin.reports import AuthorityStatus
from agent.api.admin import SERVICE, AdminApi, Administrators
from agent.errors import NotFoundError, PeerError, StartupError, VouchdError
from agent.kernel.credentials import Credentials
from agent.pb import admin_pb2 as pb
from tests.support.fakes import START, FakeLog
from tests.unit.api.conftest import Aborted, Context, Table

OWN_UID, OPERATORS = 2, 50
Code = grpc.StatusCode


def credentials(uid: int, gid: int = 9, *groups: int) -> Credentials:
    return Credentials(pid=1, uid=uid, gid=gid, groups=groups)


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        (credentials(0), True),
        (credentials(OWN_UID), True),
        (credentials(7, OPERATORS), True),
        (credentials(7, 9, OPERATORS), True),
        (credentials(7, 9, 51), False),
    ],
)
def test_root_the_own_user_and_the_group_may_administer(
    caller: Credentials, *, expected: bool
) -> None:
    assert Administrators(OWN_UID, OPERATORS).include(caller) is expected


def test_without_a_group_no_gid_may_administer() -> None:
    assert not Administrators(OWN_UID).include(credentials(7, OPERATORS, OPERATORS))


class Operations:
    """Operations that fail with `error`, if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def explain(self, _pid: int) -> object:
        raise self._error or AssertionError

    async def taint(self, authority_id: str) -> AuthorityStatus:
        if self._error is not None:
            raise self._error
        return AuthorityStatus(
            authority_id=authority_id,
            kind="x509",
            state="tainted",
            since=START,
            expires_at=START,
            next_step="",
            next_step_at=None,
        )


async def call(
    method: str, raw: bytes, *, error: Exception | None = None, table: Table | None = None
) -> tuple[bytes, Context, FakeLog]:
    """Call a method; the response is empty if the call was aborted."""
    lines, context = FakeLog(), Context()
    operations = cast("Any", Operations(error))
    api = AdminApi(operations, Administrators(OWN_UID), table or Table(), lines.log)
    details = cast("Any", SimpleNamespace(method=f"/{SERVICE}/{method}"))
    handler = cast("Any", api.handlers().service(details))
    try:
        return await handler.unary_unary(raw, context), context, lines
    except Aborted:
        return b"", context, lines


async def test_a_command_is_logged_with_its_arguments_and_caller() -> None:
    request = pb.AuthorityRequest(authority_id="c0ffee").SerializeToString()
    response, _, lines = await call("TaintAuthority", request)
    assert pb.Authority.FromString(response).authority_id == "c0ffee"
    [line] = lines.of("admin command")
    assert (line["method"], line["authority_id"]) == ("TaintAuthority", "c0ffee")
    assert (line["pid"], line["uid"]) == (1, 2)


async def test_a_command_that_fails_is_logged_with_its_reason_and_as_no_command() -> None:
    request = pb.AuthorityRequest(authority_id="abc").SerializeToString()
    _, _, lines = await call("TaintAuthority", request, error=NotFoundError("no authority abc"))
    assert not lines.of("admin command")
    [line] = lines.of("admin command failed")
    assert (line["method"], line["authority_id"]) == ("TaintAuthority", "abc")
    assert line["reason"] == "no authority abc"


async def test_a_caller_without_the_right_is_denied_and_logged() -> None:
    stranger = cast("Any", SimpleNamespace(credentials=credentials(7)))
    request = pb.AuthorityRequest(authority_id="c0ffee").SerializeToString()
    _, context, lines = await call("TaintAuthority", request, table=Table(stranger))
    assert context.code is Code.PERMISSION_DENIED
    assert "user 7 may not administer" in lines.of("admin call refused")[0]["reason"]
    assert not lines.of("admin command")


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (NotFoundError("there is no process 7"), Code.NOT_FOUND, "there is no process 7"),
        (StartupError("the disk is full"), Code.UNAVAILABLE, "the disk is full"),
        (ZeroDivisionError("secret"), Code.UNAVAILABLE, "internal error"),
    ],
)
async def test_an_operation_that_fails_ends_with_the_code_of_its_error(
    error: Exception, code: Code, details: str
) -> None:
    _, context, lines = await call("Explain", b"", error=error)
    assert context.code is code
    assert context.details.startswith(details)
    assert bool(lines.of("internal error")) is not isinstance(error, VouchdError)


async def test_a_malformed_request_is_an_invalid_argument() -> None:
    _, context, _ = await call("Explain", b"\xff\xff")
    assert context.code is Code.INVALID_ARGUMENT


async def test_a_caller_that_the_gate_does_not_know_is_denied() -> None:
    _, context, _ = await call("Explain", b"", table=Table(PeerError("unknown")))
    assert context.code is Code.PERMISSION_DENIED
