"""Selectors of fake attestors, a second fake attestor, and a helper that attests a caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attestors.api import Selector
from tests.support.fakes import FakeAttestor

if TYPE_CHECKING:
    from agent.attestation.attestor import WorkloadAttestor
    from agent.attestation.result import Attested
    from agent.kernel.caller import Caller

ONE = Selector("fake", "one")
TWO = Selector("other", "two")


class OtherAttestor(FakeAttestor):
    """A second attestor with another selector type."""

    name = "other"


async def attest(attestor: WorkloadAttestor, caller: Caller) -> Attested:
    """Attest the caller and return the result."""
    async with attestor.attest(caller) as attested:
        return attested
