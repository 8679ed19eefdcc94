"""Four thousand connections that say nothing, or stop in the middle of a word.

Each costs the client a descriptor and the agent several, so that a naive agent soon has none left
for anybody, with nothing attested yet. vouchd raises its limit to what the host allows, ends those
that have said nothing useful after a while, and waits, where descriptors do run out, instead of
failing.
"""

from __future__ import annotations

import resource
from contextlib import ExitStack

import pytest

from tests.support.abuse import PREFACE
from tests.support.targets import Target, connect, others_are_served

CONNECTIONS = 4000
# Their descriptors, and those of the test itself.
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
                break  # it is down already
        target.judge(succeeded=not others_are_served(target))
