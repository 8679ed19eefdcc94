"""Four thousand connections send nothing, or stop in the middle of the preface.

Each costs the client one descriptor and the agent several: a naive agent soon has none left, before
any attestation. vouchd raises its limit to the host's, closes connections without a request after a
timeout, and waits, instead of failing, when descriptors run out.
"""

from __future__ import annotations

import resource
from contextlib import ExitStack

import pytest

from tests.support.abuse import PREFACE
from tests.support.targets import Target, connect, others_are_served

CONNECTIONS = 4000
# Their descriptors, and others of the test.
OWN_DESCRIPTORS = CONNECTIONS + 200

pytestmark = pytest.mark.system


def test_half_open_connections(target: Target) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OWN_DESCRIPTORS), hard))
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            try:
                sock = stack.enter_context(connect(target.socket))
                sock.send(PREFACE[: number % len(PREFACE)])
            except OSError:
                break  # the agent is down
        target.record_result(succeeded=not others_are_served(target))
