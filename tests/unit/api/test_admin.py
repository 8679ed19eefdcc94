"""The admin API: which callers may use it, and how each call is logged and ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.admin.reports import AuthorityStatus
from agent.api.admin import SERVICE, AdminApi, Administrators
from agent.api.servers import make_admin_services
from agent.config.files import MAX_FILE_BYTES
from agent.errors import NotFoundError, PeerError, StartupError, VouchdError
from agent.kernel.caller import Caller
from agent.kernel.credentials import Credentials
from agent.pb import admin_pb2 as pb
from agent.transport.service import StatusCode as Code
from agent.transport.service import StatusError
from tests.support.fakes import START, FakeLog
from tests.unit.api.conftest import CALLER, FakeCall

OWN_UID, OPERATORS = 2, 50


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
    method: str,
    raw: bytes = b"",
    *,
    error: Exception | None = None,
    caller: Caller | PeerError = CALLER,
) -> tuple[FakeCall, FakeLog]:
    """Call a method of the admin socket."""
    lines = FakeLog()
    api = AdminApi(cast("Any", Operations(error)), Administrators(OWN_UID), lines.log)
    path = method if method.startswith("/") else f"/{SERVICE}/{method}"
    made = FakeCall(path, raw, caller=caller)
    await made.of(make_admin_services(api))
    return made, lines


async def test_a_command_is_logged_with_its_arguments_and_caller() -> None:
    request = pb.AuthorityRequest(authority_id="c0ffee").SerializeToString()
    made, lines = await call("TaintAuthority", request)
    assert [each.authority_id for each in made.responses(pb.Authority)] == ["c0ffee"]
    [line] = lines.of("admin command")
    assert (line["method"], line["authority_id"]) == ("TaintAuthority", "c0ffee")
    assert (line["pid"], line["uid"]) == (1, 2)


async def test_a_command_that_fails_is_logged_with_its_reason_and_as_no_command() -> None:
    request = pb.AuthorityRequest(authority_id="abc").SerializeToString()
    _, lines = await call("TaintAuthority", request, error=NotFoundError("no authority abc"))
    assert not lines.of("admin command")
    [line] = lines.of("admin command failed")
    assert (line["method"], line["authority_id"]) == ("TaintAuthority", "abc")
    assert line["reason"] == "no authority abc"


async def test_a_caller_without_the_right_is_denied_and_logged() -> None:
    stranger = cast("Any", SimpleNamespace(credentials=credentials(7)))
    request = pb.AuthorityRequest(authority_id="c0ffee").SerializeToString()
    made, lines = await call("TaintAuthority", request, caller=stranger)
    assert made.code is Code.PERMISSION_DENIED
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
    made, lines = await call("Explain", b"", error=error)
    assert made.code is code
    assert made.details.startswith(details)
    assert bool(lines.of("internal error")) is not isinstance(error, VouchdError)


async def test_a_malformed_request_is_an_invalid_argument() -> None:
    made, _ = await call("Explain", b"\xff\xff")
    assert made.code is Code.INVALID_ARGUMENT


async def test_a_caller_that_the_gate_does_not_know_is_denied() -> None:
    made, _ = await call("Explain", caller=PeerError("unknown"))
    assert made.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("path", ["/SpiffeWorkloadAPI/FetchX509SVID", f"/{SERVICE}/Reboot"])
async def test_a_method_that_does_not_exist_is_logged_by_its_path(path: str) -> None:
    made, lines = await call(path)
    assert made.code is Code.UNIMPLEMENTED
    [line] = lines.of("admin call refused")
    assert line["method"] == path


async def test_a_call_that_breaks_a_rule_of_grpc_is_logged_by_its_method() -> None:
    lines = FakeLog()
    api = AdminApi(cast("Any", Operations()), Administrators(OWN_UID), lines.log)
    services = make_admin_services(api)
    error = StatusError(Code.INTERNAL, "half a message", (("a", "b"),))
    status = services.observer.failed(FakeCall(f"/{SERVICE}/Explain"), error)
    assert (status.code, str(status), status.metadata) == (error.code, str(error), error.metadata)
    assert lines.of("admin call refused")[0]["method"] == "Explain"


async def test_the_admin_socket_has_reflection_and_large_requests() -> None:
    api = AdminApi(cast("Any", Operations()), Administrators(OWN_UID), FakeLog().log)
    methods = make_admin_services(api).methods
    assert methods[f"/{SERVICE}/DiffEntries".encode()].max_request_bytes == MAX_FILE_BYTES
    assert sum(b"Reflection" in path for path in methods) == 2
