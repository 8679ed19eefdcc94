"""The computed bound on the memory of one user."""

from __future__ import annotations

from dataclasses import replace

from agent.limits.memory import CALL_BYTES, CONNECTION_BYTES, most_bytes_of_one_user
from agent.service.policies import limits
from tests.support.settings import settings

DEFAULTS = limits(settings().limits)


def test_the_bound_grows_with_each_limit_of_a_user() -> None:
    bound = most_bytes_of_one_user(DEFAULTS)
    for change, bytes_more in (
        ({"connections_per_user": DEFAULTS.connections_per_user + 1}, CONNECTION_BYTES),
        ({"streams_per_user": DEFAULTS.streams_per_user + 1}, CALL_BYTES),
        ({"attestations_per_user": DEFAULTS.attestations_per_user + 1}, CALL_BYTES),
        ({"buffer_bytes_per_user": DEFAULTS.buffer_bytes_per_user + 1}, 1),
    ):
        assert most_bytes_of_one_user(replace(DEFAULTS, **change)) == bound + bytes_more
