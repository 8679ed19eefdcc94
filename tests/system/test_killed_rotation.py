"""An agent that is killed at any moment of any step of a rotation loses no state.

The kill is real, between the system calls that write the state. SVIDs and tokens from before must
stay valid.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509

from agent.authority.embedded import FILE
from agent.client.admin import AdminClient
from agent.client.workload import WorkloadClient
from agent.errors import UnavailableError
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, RunningAgent, entry_for_me

pytestmark = pytest.mark.system


class MortalAgent(RunningAgent):
    """An agent that is killed at system call number `moment` of a write; 0 is never."""

    moment = 0

    def _program(self) -> list[str]:
        if not self.moment:
            return super()._program()
        return ["tests.support.dying", str(self.moment), "run", "-c", str(self.config)]


@dataclass(frozen=True, slots=True)
class Seen:
    """The authorities as the admin API shows them: states by ID, and the bundle's sequence."""

    states: dict[str, tuple[str, str]]
    sequence: int

    def of(self, kind: str, state: str) -> str:
        [found] = [i for i, (k, s) in self.states.items() if (k, s) == (kind, state)]
        return found


def look(agent: RunningAgent) -> Seen:
    with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
        found = client.status()["authority"]
    states = {each["authority_id"]: (each["kind"], each["state"]) for each in found["authorities"]}
    return Seen(states, found["bundle_sequence"])


class World:
    """Remembers every SVID that was handed out."""

    def __init__(self) -> None:
        self.serials: list[int] = []
        self.tokens: list[str] = []

    def fetch(self, agent: RunningAgent) -> None:
        with WorkloadClient(agent.socket, SAFETY_SECONDS) as client:
            [svid] = client.fetch_x509_svids().svids
            [token] = client.fetch_jwt_svids(("world",), "")
        leaf = x509.load_der_x509_certificate(svid.chain_der)
        assert any(_signed(leaf, authority) for authority in _split(svid.bundle_der))
        self.serials.append(leaf.serial_number)
        self.tokens.append(token.token)

    def check_tokens(self, agent: RunningAgent) -> None:
        """Check that each token is still valid."""
        with WorkloadClient(agent.socket, SAFETY_SECONDS) as client:
            for token in self.tokens:
                client.validate_jwt_svid("world", token)


def _signed(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    if leaf.issuer != authority.subject:
        return False
    leaf.verify_directly_issued_by(authority)
    return True


def _split(der: bytes) -> list[x509.Certificate]:
    found = []
    while der:
        length = int.from_bytes(der[2:4], "big") + 4
        found.append(x509.load_der_x509_certificate(der[:length]))
        der = der[length:]
    return found


Step = Callable[[AdminClient, Seen, str], Any]
STEPS: dict[str, Step] = {
    "prepare": lambda client, _seen, kind: client.prepare_authority(kind),
    "activate": lambda client, _seen, kind: client.activate_authority(kind),
    "taint": lambda client, seen, kind: client.taint_authority(seen.of(kind, "retired")),
    "revoke": lambda client, seen, kind: client.revoke_authority(seen.of(kind, "tainted")),
}


# Before and after the fsync of the file, the rename, and the fsync of the directory.
MOMENTS = range(1, 7)
# Once the file has its name, the step is taken, whether or not the directory was synced.
AFTER_THE_RENAME = 4


@pytest.mark.parametrize(
    ("kind", "moment"), [*(("x509", moment) for moment in MOMENTS), ("jwt", 3), ("jwt", 4)]
)
def test_a_rotation_survives_being_killed_at_any_moment(kind: str, moment: int) -> None:
    agent, world = MortalAgent(entry_for_me()), World()
    try:
        world.fetch(agent)
        for name, step in STEPS.items():
            if name in {"taint", "revoke"}:
                world.tokens.clear()  # tokens of a tainted key may become invalid
            before = look(agent)
            die_in(agent, moment, lambda client: step(client, before, kind))  # noqa: B023
            after = look(agent)
            check(before, after)
            assert (after.states != before.states) == (moment >= AFTER_THE_RENAME), name
            world.fetch(agent)
            world.check_tokens(agent)
            if moment < AFTER_THE_RENAME:
                with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
                    step(client, before, kind)
            assert look(agent).states != before.states
        # The same SVID after each kill, except the one that a tainted key had signed.
        assert len(set(world.serials)) == (2 if kind == "x509" else 1)
    finally:
        agent.close()


def die_in(agent: MortalAgent, moment: int, step: Callable[[AdminClient], Any]) -> None:
    """Kill the agent in a step, and start it again."""
    agent.stop()
    agent.moment = moment
    agent.start()
    with (
        AdminClient(agent.admin_socket, SAFETY_SECONDS) as client,
        pytest.raises(UnavailableError),
    ):
        step(client)
    agent.kill()
    agent.moment = 0
    agent.start()


def check(before: Seen, after: Seen) -> None:
    """Check that no authority in use is lost, and that each bundle has its own sequence."""
    lost = set(before.states) - set(after.states)
    assert all(before.states[each][1] == "tainted" for each in lost)
    is_same_bundle = set(after.states) == set(before.states)
    assert after.sequence == before.sequence + (0 if is_same_bundle else 1)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_first_start_survives_being_killed_at_any_moment(moment: int) -> None:
    agent, world = RunningAgent(entry_for_me()), World()
    try:
        agent.stop()
        stored = agent.directory / "data" / FILE
        stored.unlink()
        command = [sys.executable, "-m", "tests.support.dying", str(moment), "run", "-c"]
        died = subprocess.run(
            [*command, agent.config],
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,
            timeout=SAFETY_SECONDS,
            check=False,
        )
        assert died.returncode == -signal.SIGKILL
        survived = stored.read_bytes() if stored.exists() else None
        assert (survived is not None) == (moment >= AFTER_THE_RENAME)
        agent.start()
        world.fetch(agent)
        assert survived in {None, stored.read_bytes()}
    finally:
        agent.close()
