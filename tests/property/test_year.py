"""A year of an agent with open streams: edits, restarts, suspends, clock steps and rotations.

All parts are real except time, attestors and the wire. After each step, each stream must show
exactly the identities that its caller matches now. Each message is verified when it arrives, with
the bundle in the same message.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.authority.authority_set import AuthorityKind, AuthoritySet, State
from agent.authority.embedded import FILE
from agent.entries.entry import Entry, EntryId, EntrySet, Share
from agent.entries.identity import Identity, match
from agent.entries.template import SpiffeIdTemplate
from agent.errors import VouchdError
from agent.kernel.caller import identify
from agent.pb import workloadapi_pb2 as pb
from agent.spiffe.ids import SpiffeId
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.transport.grpc_protocol import PREFIX_BYTES
from attestors.api import Selector
from tests.support.fakes import FakeClock
from tests.support.year import DAY, HOUR, LONGEST, TD, Agent, Client

YEAR = 365 * DAY
FACTS = [Selector("fake", f"fact:{n}") for n in range(12)]
ENTRIES, CALLERS = 50, 4
# One turn of the agent's loops; a real agent takes one each second.
TICK = timedelta(hours=2)
# Streams come to rest in milliseconds, unless two of them wake each other forever. The authority
# writes its keys in a thread, and the disk may be slow.
SETTLING_SECONDS = 30.0


class Year(RuleBasedStateMachine):
    """A state machine over a simulated year (see the module's docstring)."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a test
        self.loop = asyncio.new_event_loop()
        self.data = Path(tempfile.mkdtemp(prefix="vouchd-year-"))
        self.clock = FakeClock()
        self.elapsed = timedelta()
        self.entries = {f"e{n}": self.draw_entry(f"e{n}") for n in range(ENTRIES)}
        self.known: dict[int, frozenset[Selector]] = {}
        self.sockets = [socket.socketpair() for _ in range(CALLERS)]
        self.clients = [Client(identify(near), self.clock) for near, _ in self.sockets]
        for client in self.clients:
            facts = frozenset(self.random.sample(FACTS, self.random.randint(1, 5)))
            mine = Selector("fake", f"name:c{client.caller.process.fileno()}")
            self.known[client.caller.process.fileno()] = facts | {mine}
        self.start()

    def start(self) -> None:
        self.agent = Agent(
            self.data / "data", self.entry_set(), self.clock, self.known, self.random
        )
        self.do(self.agent.tick())

    def entry_set(self) -> EntrySet:
        return EntrySet(tuple(self.entries.values()))

    def draw_entry(self, name: str) -> Entry:
        draw = self.random
        is_template = draw.random() < 0.1
        path = "/t/{fake:name}" if is_template else f"/{name}"
        hours = draw.randint(1, 2000)
        ends = self.clock.now() + hours * HOUR if draw.random() < 0.3 else None
        return Entry(
            id=EntryId(name),
            spiffe_id=SpiffeIdTemplate(TD, path) if is_template else SpiffeId(TD, path),
            selectors=frozenset(draw.sample(FACTS, draw.randint(1, 2))),
            x509_svid_ttl=draw.choice([None, None, 14 * HOUR, LONGEST]),
            hint=draw.choice(["", "", "x"]),
            share=draw.choice([Share.ENTRY, Share.ENTRY, Share.PROCESS]),
            expires_at=ends,
        )

    # --- the loop --------------------------------------------------------------------------------

    def do(self, work: Any) -> Any:
        done = self.loop.run_until_complete(work)
        self.loop.run_until_complete(self.settle())
        return done

    async def settle(self) -> None:
        """Run the loop until all streams are idle; clients reopen ended streams."""
        for client in self.clients:
            if client.task is None:
                client.task = asyncio.create_task(client.read(self.agent.api))  # noqa: TID251 - a test
        try:
            async with asyncio.timeout(SETTLING_SECONDS):
                await asyncio.sleep(0)
                while not all(map(self.is_at_rest, self.clients)):
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError("the streams do not come to rest") from None

    def is_at_rest(self, client: Client) -> bool:
        assert client.task is not None
        if client.task.done():
            client.task.result()
            return True
        streams = [s for s in self.agent.streams.open if s.caller is client.caller]
        return bool(
            client.shown is not None
            and streams
            and not any(s.changed.is_set() or s.entitlement is None for s in streams)
        )

    def reconnect(self) -> None:
        """Mark ended streams, so that their clients open new ones."""
        for client in self.clients:
            if client.task is not None and client.task.done():
                client.task = None
        self.do(asyncio.sleep(0))

    # --- steps -----------------------------------------------------------------------------------

    @rule(hours=st.integers(1, 300))
    def time_passes(self, hours: int) -> None:
        end = self.clock.now() + hours * HOUR
        while self.clock.now() < end:
            self.clock.set(min(end, self.clock.now() + TICK))
            self.do(self.agent.tick())
        self.elapsed += hours * HOUR
        self.reconnect()

    @rule(hours=st.integers(1, 500))
    def the_host_is_suspended(self, hours: int) -> None:
        self.clock.set(self.clock.now() + hours * HOUR)
        self.elapsed += hours * HOUR
        for client in self.clients[:2]:  # these call before any loop has its turn
            self.hang_up(client)
        self.do(asyncio.sleep(0))
        self.do(self.agent.tick())
        self.reconnect()

    @rule(minutes=st.integers(1, 60 * 48))
    def the_clock_is_set_back(self, minutes: int) -> None:
        self.clock.set(self.clock.now() - timedelta(minutes=minutes))
        self.do(self.agent.tick())
        self.reconnect()

    @rule(count=st.integers(1, 10))
    def entries_are_edited(self, count: int) -> None:
        before = [(client.messages, self.identities(client)) for client in self.clients]
        for name in self.random.sample([f"e{n}" for n in range(ENTRIES)], count):
            if self.random.random() < 0.4:
                self.entries.pop(name, None)
            else:
                self.entries[name] = self.draw_entry(name)
        self.agent.wanted = self.entry_set()
        self.do(self.agent.reloader.reload())
        for client, (messages, identities) in zip(self.clients, before, strict=True):
            is_touched = identities != self.identities(client)
            assert client.messages == messages or is_touched
        self.reconnect()

    @rule(kind=st.sampled_from(AuthorityKind))
    def an_operator_rotates(self, kind: AuthorityKind) -> None:
        with suppress(VouchdError):
            self.do(self.agent.authority.prepare(kind))
        self.do(self.agent.authority.activate(kind))
        self.do(self.agent.tick())

    @rule(kind=st.sampled_from(AuthorityKind), revoked=st.booleans())
    def an_operator_taints(self, kind: AuthorityKind, revoked: bool) -> None:  # noqa: FBT001 - hypothesis
        retired = [a for a in self.agent.authority.authorities.of(kind) if a.state is State.RETIRED]
        for each in retired:
            self.do(self.agent.authority.taint(each.id))
            for client in self.clients:
                for svid in client.shown or ():
                    leaf = x509.load_der_x509_certificate(svid.x509_svid)
                    key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
                    assert (key.value.key_identifier or b"").hex() != each.id
            if revoked:
                self.do(self.agent.authority.revoke(each.id))

    @rule()
    def the_agent_is_restarted(self) -> None:
        before = self.agent.authority.bundle.document()
        self.stop()
        self.agent.close()
        self.agent = Agent(
            self.data / "data", self.entry_set(), self.clock, self.known, self.random
        )
        assert self.agent.authority.bundle.document() == before
        self.do(self.agent.tick())

    @precondition(lambda self: self.clients)
    @rule(number=st.integers(0, CALLERS - 1))
    def a_client_opens_its_stream_again(self, number: int) -> None:
        self.hang_up(self.clients[number])
        self.do(asyncio.sleep(0))

    def hang_up(self, client: Client) -> None:
        if client.task is not None:
            client.task.cancel()
            with suppress(asyncio.CancelledError):
                self.loop.run_until_complete(client.task)
            client.task = None

    def stop(self) -> None:
        for client in self.clients:
            self.hang_up(client)

    # --- invariants ------------------------------------------------------------------------------

    def identities(self, client: Client) -> tuple[Identity, ...]:
        caller = client.caller
        known = self.known[caller.process.fileno()]
        return match(self.entry_set(), known, caller.process.name, self.clock.now()).identities

    def expected(self, client: Client) -> list[str]:
        return [str(identity.spiffe_id) for identity in self.identities(client)]

    @invariant()
    def each_stream_shows_the_identities_of_its_caller(self) -> None:
        for client in self.clients:
            assert client.shown is not None
            assert [svid.spiffe_id for svid in client.shown] == self.expected(client)
            client.verify()

    @invariant()
    def each_stream_shows_the_current_bundle(self) -> None:
        bundle = self.agent.authority.bundle.x509_der()
        for client in self.clients:
            assert all(svid.bundle == bundle for svid in client.shown or ())

    @invariant()
    def the_keys_on_disk_are_those_in_use(self) -> None:
        stored = self.agent.keystore.read(FILE)
        assert stored is not None
        assert AuthoritySet.parse(stored, TD).to_json() == stored
        assert self.agent.authority.authorities.to_json() == stored

    @invariant()
    def tokens_are_valid(self) -> None:
        client = self.clients[0]
        if not self.expected(client):
            return
        request = pb.JWTSVIDRequest(audience=["a"])
        response = self.do(self.agent.api.fetch_jwt_svid(client.caller, request))
        answer = pb.JWTSVIDResponse.FromString(response.framed[PREFIX_BYTES:])
        for svid in answer.svids:
            bundle = self.agent.authority.bundle
            valid = validate_jwt_svid(svid.svid, "a", {TD: bundle}, self.clock.now())
            assert str(valid.spiffe_id) == svid.spiffe_id
            assert valid.expires_at > self.clock.now()

    def teardown(self) -> None:
        if not hasattr(self, "agent"):
            return
        try:
            while self.elapsed < YEAR:
                self.time_passes(self.random.randint(24, 400))
                self.entries_are_edited(5)
                self.each_stream_shows_the_identities_of_its_caller()
                self.each_stream_shows_the_current_bundle()
                self.the_keys_on_disk_are_those_in_use()
        finally:
            self.stop()
            self.agent.close()
            for client in self.clients:
                client.caller.close()
            for pair in self.sockets:
                for each in pair:
                    each.close()
            self.loop.close()
            shutil.rmtree(self.data)


TestYear = Year.TestCase
TestYear.settings = settings(max_examples=1, stateful_step_count=25, deadline=None)
