"""The example of attestors/README.md is a package that works."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from tests.support import raw
from tests.support.agent import REPOSITORY, RunningAgent
from tests.support.documents import blocks
from tests.support.plugin import install


def ask(agent: RunningAgent, *prefix: str) -> object:
    """The SPIFFE IDs of a new process that is started with this prefix, or its refusal."""
    command = [*prefix, sys.executable, "-m", "tests.support.ask", str(agent.socket)]
    return json.loads(subprocess.check_output(command, cwd=REPOSITORY))


def test_example_attestor_gives_an_identity_to_a_restricted_process_only(
    agent_factory: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    code, project, config, entries = (
        "\n".join([*block.lines, ""]) for block in blocks(REPOSITORY / "attestors/README.md")
    )
    points = tomllib.loads(project)["project"]["entry-points"]["vouchd.attestors"]
    site = install(tmp_path, "confined", code, points)
    user = pwd.getpwuid(os.getuid()).pw_name
    agent = agent_factory(
        entries.replace("unix:user:thumbnails", f"unix:user:{user}"),
        config=config,
        env={"PYTHONPATH": str(site)},
    )
    assert ask(agent) == raw.PERMISSION_DENIED
    restricted = ask(agent, "setpriv", "--no-new-privs")
    assert restricted == ["spiffe://example.org/render/thumbnails"]
