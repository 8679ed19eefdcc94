"""The control command of the conformance suite for vouchd (tests/conformance/README.md).

`python -m tests.agent.conformance.control SITUATION` starts an agent, prints one line of JSON when
it is ready, takes a step for each line on stdin, and stops the agent at the end of stdin.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.agent import RunningAgent, entry_for_me

Step = Callable[[RunningAgent], object]

LONGEST_ID = "spiffe://example.org/" + "a" * (2048 - len("spiffe://example.org/"))
SEVERAL = {
    "spiffe://example.org/zulu": "",
    "spiffe://example.org/alpha": "shared",
    "spiffe://example.org/mike": "shared",
    LONGEST_ID: "",
}
"""SPIFFE IDs and hints."""
RENEWED = "spiffe://example.org/renewed"
LASTING = "spiffe://example.org/lasting"
LOST_FIRST = "spiffe://example.org/lost-first"
LOST_LAST = "spiffe://example.org/lost-last"
_FAILING_ATTESTOR = """
from attestors.api import AttestorError, Options


class Failing:
    name = "failing"
    Options = Options
    timeout = 1.0

    def __init__(self, options, context):
        pass

    async def attest(self, workload):
        raise AttestorError("the attestor has no answer")

    async def close(self):
        pass
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An agent's entries, what the tests may expect of it, and its steps."""

    entries: str
    spiffe_ids: tuple[str, ...] = ()
    config: str = ""
    steps: tuple[Step, ...] = ()


def _entries(*entries: str) -> str:
    return "".join(["entries:\n", *(entry.removeprefix("entries:\n") for entry in entries)])


def _with_entries(text: str) -> Step:
    return lambda agent: agent.entries.write_text(text)


SCENES = {
    "one": Scene(entries=entry_for_me(), spiffe_ids=("spiffe://example.org/test/me",)),
    "several": Scene(
        entries=_entries(
            *(entry_for_me(i, **({"hint": hint} if hint else {})) for i, hint in SEVERAL.items())
        ),
        spiffe_ids=tuple(SEVERAL),
    ),
    "none": Scene(
        entries="entries: [{spiffe_id: /else, selectors: ['unix:path:/no/such/program']}]\n"
    ),
    "failing": Scene(
        entries="entries: [{spiffe_id: /a, selectors: ['failing:x']}]\n",
        config="attestors: {failing: {}}",
    ),
    "renewing": Scene(
        entries=_entries(entry_for_me(RENEWED, x509_svid_ttl="4s"), entry_for_me(LASTING)),
        spiffe_ids=(RENEWED, LASTING),
    ),
    "losing": Scene(
        entries=_entries(entry_for_me(LOST_FIRST), entry_for_me(LOST_LAST)),
        spiffe_ids=(LOST_FIRST, LOST_LAST),
        steps=(_with_entries(entry_for_me(LOST_LAST)), _with_entries("entries: []\n")),
    ),
    "stopping": Scene(entries=entry_for_me(), steps=(RunningAgent.stop,)),
}


def main(name: str) -> None:
    """Serve one situation until the end of stdin."""
    scene = SCENES[name]
    with tempfile.TemporaryDirectory() as site:
        install_failing_attestor(Path(site))
        agent = RunningAgent(scene.entries, config=scene.config, env={"PYTHONPATH": site})
        try:
            answer = {"socket": agent.address, "spiffe_ids": scene.spiffe_ids, "pid": agent.pid}
            print(json.dumps(answer), flush=True)
            for _line, step in zip(sys.stdin, scene.steps, strict=False):
                step(agent)
            sys.stdin.read()
        finally:
            agent.close()


def install_failing_attestor(site: Path) -> None:
    """Put a package with an attestor that always fails into a directory of PYTHONPATH."""
    (site / "failing.py").write_text(_FAILING_ATTESTOR)
    package = site / "failing-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vouchd.attestors]\nfailing = failing:Failing\n")


if __name__ == "__main__":
    main(sys.argv[1])
