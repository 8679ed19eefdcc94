"""The gauges of the metrics."""

from __future__ import annotations

import math
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from agent.admin.gauges import Gauges
from agent.admin.readiness import Readiness
from agent.kernel.caller import Weakness
from tests.support.fakes import START

if TYPE_CHECKING:
    from agent.telemetry.metrics import Levels

DAY = timedelta(days=1)
ACTIVE = SimpleNamespace(not_before=START, not_after=START + DAY)


class Three:
    """A part that counts three things."""

    first_expiry: Any = None
    accepts: Any = None
    weaknesses: Any = None

    def __len__(self) -> int:
        return 3


def levels(**changed: Any) -> Levels:
    """The gauges of an agent that is ready, except for what is changed."""
    state: dict[str, Any] = {
        "accepts": True,
        "failure": "",
        "first_expiry": None,
        "weaknesses": {},
        "streams": (),
        **changed,
    }
    authority: Any = SimpleNamespace(
        can_sign=True,
        failure=state["failure"],
        authorities=SimpleNamespace(active_x509=ACTIVE, active_jwt=ACTIVE),
    )
    svids, gate = Three(), Three()
    svids.first_expiry = state["first_expiry"]
    gate.accepts, gate.weaknesses = state["accepts"], state["weaknesses"]
    return Gauges(
        readiness=Readiness(authority, cast("Any", gate)),
        authority=authority,
        x509_svids=cast("Any", svids),
        jwt_svids=cast("Any", Three()),
        streams=cast("Any", SimpleNamespace(open=state["streams"])),
        gate=cast("Any", gate),
        streaming=["FetchX509SVID", "FetchJWTBundles"],
    ).levels()


def test_an_agent_that_accepts_no_connection_is_not_ready() -> None:
    assert levels().ready
    assert not levels(accepts=False).ready


def test_an_agent_is_ready_while_the_rotation_fails_and_the_active_authority_signs() -> None:
    found = levels(failure="disk full")
    assert (found.ready, found.authority_failing) == (True, True)


def test_every_label_has_a_gauge_before_the_first_event() -> None:
    found = levels()
    assert found.streams == {"FetchX509SVID": 0, "FetchJWTBundles": 0}
    assert found.weak_proofs == {"no_peerpidfd": 0, "no_pidfs": 0}
    assert math.isnan(found.svid_expiry)


def test_the_gauges_show_the_state_of_the_parts() -> None:
    stream = SimpleNamespace(method="FetchX509SVID")
    found = levels(
        first_expiry=START + DAY,
        streams=(stream, stream),
        weaknesses={Weakness.NO_PIDFS.value: 4},
    )
    assert found.connections == 3
    assert found.svids == {"x509": 3, "jwt": 3}
    assert found.streams == {"FetchX509SVID": 2, "FetchJWTBundles": 0}
    assert found.weak_proofs == {"no_peerpidfd": 0, "no_pidfs": 4}
    assert found.svid_expiry == (START + DAY).timestamp()
    assert found.authority_expiry == dict.fromkeys(("x509", "jwt"), (START + DAY).timestamp())
    assert found.authority_lifetime == dict.fromkeys(("x509", "jwt"), DAY.total_seconds())
