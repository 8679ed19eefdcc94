"""An agent of real parts on a fake clock, and its clients, for a simulated year."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from pydantic import BaseModel

from agent.api.workload import Review, ServingPolicy, WorkloadApi
from agent.attestation.attestor import WorkloadAttestor
from agent.authority.embedded import AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.entries.entry import EntrySet
from agent.entries.schema import LoadedEntries
from agent.errors import NoIdentityError
from agent.kernel.caller import Caller
from agent.pb import workloadapi_pb2 as pb
from agent.service.wiring import make_issuing, make_streams, make_workload_api
from agent.spiffe.bundle import TrustBundle
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.spiffe.x509_rules import validate_x509_svid
from agent.telemetry.metrics import Metrics
from agent.transport.grpc_protocol import PREFIX_BYTES
from agent.workloads.entitlement import Entitlements
from agent.workloads.entry_reload import EntryReloader
from attestors.api import Findings, Options, Selector, WorkloadRef
from tests.support.fakes import FakeClock, FakeLog
from tests.support.settings import settings

TD = TrustDomain("example.org")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
POLICY = AuthorityPolicy(trust_domain=TD, key_type=KeyType.EC_P256, ttl=7 * DAY)
LONGEST = POLICY.longest_svid
SETTINGS = settings(authority={"x509_ca_ttl": "7d", "x509_svid_ttl": "28h", "jwt_svid_ttl": "2h"})


class AttestorByPidfd:
    """An attestor with given selectors for each pidfd."""

    name: ClassVar[str] = "fake"
    Options: ClassVar[type[BaseModel]] = Options
    timeout: ClassVar[float] = 60.0
    reuse_seconds: ClassVar[float] = 0.0
    reuse_across_connections: ClassVar[bool] = False

    def __init__(self, known: dict[int, frozenset[Selector]]) -> None:
        self._known = known

    async def attest(self, workload: WorkloadRef) -> Findings:
        return Findings(self._known[workload.pidfd])

    async def close(self) -> None:
        """Nothing is open."""


class Client:
    """A workload with one stream, which it opens again when the stream ends."""

    def __init__(self, caller: Caller, clock: FakeClock) -> None:
        self.caller = caller
        self._clock = clock
        self.shown: list[pb.X509SVID] | None = None
        self.messages = 0
        self.task: asyncio.Task[None] | None = None

    async def read(self, api: WorkloadApi) -> None:
        self.shown = None
        try:
            async for response in api.fetch_x509_svid(self.caller, pb.X509SVIDRequest()):
                message = pb.X509SVIDResponse.FromString(response.framed[PREFIX_BYTES:])
                self.messages += 1
                self.shown = list(message.svids)
                self.verify()
        except NoIdentityError:
            self.shown = []

    def verify(self) -> None:
        """Check that each SVID of the last message verifies now with the bundle beside it."""
        for svid in self.shown or ():
            begins, ends = verified(svid.x509_svid, svid.bundle, svid.spiffe_id, self._clock.now())
            assert begins <= self._clock.now() <= ends


@lru_cache(10_000)
def _split(der: bytes) -> tuple[x509.Certificate, ...]:
    """Parse concatenated certificates, the form of bundles."""
    if not der:
        return ()
    length = int.from_bytes(der[2:4], "big") + 4
    return (x509.load_der_x509_certificate(der[:length]), *_split(der[length:]))


_VERIFIED: dict[tuple[bytes, bytes, str], tuple[datetime, datetime]] = {}


def verified(
    leaf: bytes, bundle: bytes, spiffe_id: str, now: datetime
) -> tuple[datetime, datetime]:
    """Verify a certificate once, and return the begin and end of its lifetime."""
    key = leaf, bundle, spiffe_id
    if key not in _VERIFIED:
        certificate = x509.load_der_x509_certificate(leaf)
        authorities = TrustBundle(
            trust_domain=TD,
            x509_authorities=_split(bundle),
            jwt_authorities={},
            sequence=1,
            refresh_hint=HOUR,
        )
        assert str(validate_x509_svid([certificate], authorities, now)) == spiffe_id
        _VERIFIED[key] = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return _VERIFIED[key]


class Agent:
    """The parts of a running agent on one data directory."""

    def __init__(
        self,
        data: Path,
        entries: EntrySet,
        clock: FakeClock,
        known: dict[int, frozenset[Selector]],
        randomness: random.Random,
    ) -> None:
        self.lines = FakeLog()
        log = self.lines.log
        self.keystore = Keystore(data)
        self.authority = EmbeddedAuthority.open(POLICY, self.keystore, clock, log)
        issuing = make_issuing(
            SETTINGS, self.authority, clock, log, spread=lambda: randomness.uniform(-1, 1)
        )
        self.svids, self.jwt_svids = issuing.x509_svids, issuing.jwt_svids
        self.streams = make_streams(self.authority, clock)
        attestor = WorkloadAttestor([AttestorByPidfd(known)], log)
        self.entitlements = Entitlements(attestor, entries, _proved, clock, log)
        self.wanted = entries
        self.reloader = EntryReloader(
            lambda: LoadedEntries(entries=self.wanted),
            self.entitlements,
            self.streams,
            Metrics(),
            clock,
            log,
        )
        self.api = make_workload_api(
            SETTINGS,
            issuing,
            self.entitlements,
            self.streams,
            clock,
            lambda _caller, _svid, _evidence: None,
            log,
        )
        self.api.policy = ServingPolicy(review=Review(DAY, lambda: 0.0))

    async def tick(self) -> None:
        await self.authority.take_due_steps()
        while self.svids.renew_due():
            pass
        self.streams.wake_ended()

    def close(self) -> None:
        self.authority.close()
        self.keystore.close()


async def _proved(_caller: Caller) -> None:
    return
