"""Whether the agent is ready, and what its levels are."""

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


def readiness(**changed: Any) -> Readiness:
    """Of an agent that is well, but for what is changed."""
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
    svids = Kept()
    svids.first_expiry = state["first_expiry"]
    streams = SimpleNamespace(streams=state["streams"])
    site = SimpleNamespace(authority=authority, streams=streams, svids=svids, jwt_svids=Kept())
    gate = Kept()
    gate.accepts, gate.weaknesses = state["accepts"], state["weaknesses"]
    return Readiness(cast("Any", site), cast("Any", gate), ["FetchX509SVID", "FetchJWTBundles"])


class Kept:
    """Three of something."""

    first_expiry: Any = None
    accepts: Any = None
    weaknesses: Any = None

    def __len__(self) -> int:
        return 3


def test_an_agent_that_is_well_is_ready() -> None:
    assert readiness().obstacles() == ()
    assert readiness().levels().ready


def test_an_agent_that_starts_or_stops_is_not_ready() -> None:
    [obstacle] = readiness(accepts=False).obstacles()
    assert "starting or stopping" in obstacle
    assert not readiness(accepts=False).levels().ready


def test_an_agent_that_cannot_sign_is_not_ready_and_tells_no_secret() -> None:
    [obstacle] = readiness(can_sign=False, failure="/secret is full").obstacles()
    assert obstacle == "the authority cannot sign: vouchd status says why"


def test_a_step_that_fails_is_seen_while_the_active_one_still_signs() -> None:
    found = readiness(failure="disk full").levels()
    assert (found.ready, found.authority_failing) == (True, True)


def test_all_words_are_there_though_nothing_is() -> None:
    found = readiness().levels()
    assert found.streams == {"FetchX509SVID": 0, "FetchJWTBundles": 0}
    assert found.weak_proofs == {"no_peerpidfd": 0, "no_pidfs": 0}
    assert math.isnan(found.svid_expiry)


def test_levels_are_those_of_the_parts() -> None:
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
