"""Renewal of many X.509-SVIDs due at the same time: in process, real keys, a fake clock."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from agent.authority.embedded import AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids.x509 import TICK_SECONDS, X509Svids
from tests.bench.findings import OURS, Finding
from tests.support.fakes import FakeClock, FakeLog, identity

SIZES = (100, 1000, 10_000)
ROUNDS = 2
TTL = timedelta(hours=1)
# Renewals are due after half of the lifetime, spread over a tenth of it.
ALL_DUE = TTL * 0.56
SCENARIO = "renewal of SVIDs that are all due, each of a watcher"
ALL, EACH, PAUSE = "all, s", "each, µs", "longest the loop was kept, ms"


def measure() -> list[Finding]:
    """Measure the time until each watcher was notified, and the longest pause of the event loop."""
    return [finding for size in SIZES for finding in asyncio.run(_measure(size))]


async def _measure(size: int) -> list[Finding]:
    clock, log = FakeClock(), FakeLog().log
    policy = AuthorityPolicy(
        trust_domain=TrustDomain("example.org"), key_type=KeyType.EC_P256, ttl=timedelta(hours=24)
    )
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vouchd-"))
        keystore = Keystore(Path(folder))
        stack.callback(keystore.close)
        authority = EmbeddedAuthority.open(policy, keystore, clock, log)
        stack.callback(authority.close)
        svids = X509Svids(authority, clock, TTL, lambda: 0.0, log)
        told = [asyncio.Event() for _ in range(size)]
        for number, event in enumerate(told):
            each = identity(f"w{number}")
            svids.get(each)
            stack.enter_context(svids.watch([each], event))
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(svids.run())
            rounds = [await _renew_all(clock, told) for _ in range(ROUNDS)]
            running.cancel()
    values = {
        ALL: [seconds for seconds, _ in rounds],
        EACH: [seconds / size * 1e6 for seconds, _ in rounds],
        PAUSE: [pause * 1e3 for _, pause in rounds],
    }
    return [
        Finding(
            scenario=SCENARIO,
            measure=measure,
            size=size,
            values={OURS: several},
            per_one=measure == EACH,
        )
        for measure, several in values.items()
    ]


async def _renew_all(clock: FakeClock, told: Sequence[asyncio.Event]) -> tuple[float, float]:
    """Return the seconds until all are notified, and the longest pause of the event loop."""
    for event in told:
        event.clear()
    clock.set(clock.now() + ALL_DUE)
    began = moment = time.perf_counter()
    longest = 0.0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(clock.advance(timedelta(seconds=TICK_SECONDS)))
        while not all(event.is_set() for event in reversed(told)):
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, moment = max(longest, now - moment), now
    return moment - began, longest
