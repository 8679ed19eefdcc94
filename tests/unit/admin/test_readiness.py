"""Readiness: whether the agent can serve."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from agent.admin.readiness import Readiness


def reasons(*, can_sign: bool = True, failure: str = "", accepts: bool = True) -> tuple[str, ...]:
    authority: Any = SimpleNamespace(can_sign=can_sign, failure=failure)
    return Readiness(authority, cast("Any", SimpleNamespace(accepts=accepts))).not_ready_because()


def test_an_agent_that_accepts_and_signs_is_ready() -> None:
    assert reasons() == ()


def test_an_agent_that_accepts_no_connection_is_not_ready() -> None:
    [reason] = reasons(accepts=False)
    assert "starts or stops" in reason


def test_an_agent_that_cannot_sign_is_not_ready_and_its_reason_holds_no_path() -> None:
    """Every user of the host can read `/ready`."""
    [reason] = reasons(can_sign=False, failure="/secret is full")
    assert reason == "the authority cannot sign: vouchd status says why"


def test_an_agent_is_ready_while_the_rotation_fails_and_the_active_authority_signs() -> None:
    assert reasons(failure="disk full") == ()
