"""Readiness, and the gauges of the metrics."""

from __future__ import annotations

import math
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

from agent.admin.readiness import Readiness
from agent.kernel.caller import Weakness
from tests.support.fakes import START

DAY = timedelta(days=1)
ACTIVE = SimpleNamespace(not_before=START, not_after=START + DAY)


class Three:
    """A part that counts three things."""

    first_expiry: Any = None
    accepts: Any = None
    weaknesses: Any = None

    def __len__(self) -> int:
        return 3


def readiness(**changed: Any) -> Readiness:
    """The readiness of an agent that is ready, except for what is changed."""
    state: dict[str, Any] = {
        "accepts": True,
        "can_sign": True,
        "failure": "",
        "first_expiry": None,
        "weaknesses": {},
        "streams": (),
        **changed,
    }
    authority = SimpleNamespace(
        can_sign=state["can_sign"],
        failure=state["failure"],
        authorities=SimpleNamespace(active_x509=ACTIVE, active_jwt=ACTIVE),
    )
    svids, gate = Three(), Three()
    svids.first_expiry = state["first_expiry"]
    gate.accepts, gate.weaknesses = state["accepts"], state["weaknesses"]
    return Readiness(
        authority=cast("Any", authority),
        x509_svids=cast("Any", svids),
        jwt_svids=cast("Any", Three()),
        streams=cast("Any", SimpleNamespace(open=state["streams"])),
        gate=cast("Any", gate),
        streaming=["FetchX509SVID", "FetchJWTBundles"],
    )


def test_an_agent_that_accepts_and_signs_is_ready() -> None:
    assert readiness().not_ready_because() == ()
    assert readiness().levels().ready


def test_an_agent_that_accepts_no_connection_is_not_ready() -> None:
    [reason] = readiness(accepts=False).not_ready_because()
    assert "starts or stops" in reason
    assert not readiness(accepts=False).levels().ready


def test_an_agent_that_cannot_sign_is_not_ready_and_its_reason_holds_no_path() -> None:
    """Every user of the host can read `/ready`."""
    [reason] = readiness(can_sign=False, failure="/secret is full").not_ready_because()
    assert reason == "the authority cannot sign: vouchd status says why"


def test_an_agent_is_ready_while_the_rotation_fails_and_the_active_authority_signs() -> None:
    found = readiness(failure="disk full").levels()
    assert (found.ready, found.authority_failing) == (True, True)


def test_every_label_has_a_gauge_before_the_first_event() -> None:
    found = readiness().levels()
    assert found.streams == {"FetchX509SVID": 0, "FetchJWTBundles": 0}
    assert found.weak_proofs == {"no_peerpidfd": 0, "no_pidfs": 0}
    assert math.isnan(found.svid_expiry)


def test_the_gauges_show_the_state_of_the_parts() -> None:
    stream = SimpleNamespace(method="FetchX509SVID")
    found = readiness(
        first_expiry=START + DAY,
        streams=(stream, stream),
        weaknesses={Weakness.NO_PIDFS.value: 4},
    ).levels()
    assert found.connections == 3
    assert found.svids == {"x509": 3, "jwt": 3}
    assert found.streams == {"FetchX509SVID": 2, "FetchJWTBundles": 0}
    assert found.weak_proofs == {"no_peerpidfd": 0, "no_pidfs": 4}
    assert found.svid_expiry == (START + DAY).timestamp()
    assert found.authority_expiry == dict.fromkeys(("x509", "jwt"), (START + DAY).timestamp())
    assert found.authority_lifetime == dict.fromkeys(("x509", "jwt"), DAY.total_seconds())
