"""The image of deploy/Containerfile, run as docs/how-to/containers.md says.

As root: `make test-system`.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Outcome, vouchd
from tests.support.image import IMAGE, USER, Containers, documented

pytestmark = pytest.mark.system

CONTAINER_USER = 42002
ENTRIES = f"""
entries:
  - spiffe_id: /host
    selectors:
      - unix:uid:0
      - unix:sha256:{hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()}
  - spiffe_id: /container
    selectors: [unix:uid:{CONTAINER_USER}]
"""
# Capability numbers (linux/capability.h).
DAC_READ_SEARCH, SYS_PTRACE = 2, 19
# Build tools, and files that a build leaves.
TOOLS = {f"bin/{name}" for name in ("cc", "gcc", "c++", "g++", "ld", "make", "pip", "pip3")}
MODULES = {"ensurepip", "pip", "setuptools"}
REMAINS = {"root/.cache", "source", "usr/share/python-wheels", "var/cache/apt/pkgcache.bin"}


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    engine = Containers()
    yield engine
    engine.close()


@pytest.fixture
def agent(containers: Containers) -> Iterator[Containers]:
    with containers.running(ENTRIES):
        yield containers


def ask(agent: Containers) -> Outcome:
    return vouchd("fetch", "x509", SPIFFE_ENDPOINT_SOCKET=f"unix://{agent.sockets}/agent.sock")


def test_agent_serves_processes_of_the_host_and_of_other_containers(agent: Containers) -> None:
    assert "spiffe://example.org/host" in ask(agent).stdout
    options = (
        "--network=none",
        f"--user={CONTAINER_USER}",
        f"--volume={agent.sockets}:/run/vouchd:ro",
    )
    other = agent.podman("run", "--rm", *options, IMAGE, "fetch", "x509")
    assert "spiffe://example.org/container" in other


def test_health_check_of_the_image_succeeds(agent: Containers) -> None:
    _podman, *arguments = documented("podman exec")
    assert "SERVING" in agent.podman(*arguments)


def test_agent_has_the_user_and_the_capabilities_of_the_documented_command(
    agent: Containers,
) -> None:
    lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    status = {name: value.split() for name, value in (line.split(":", 1) for line in lines)}
    assert set(status["Uid"] + status["Gid"] + status["Groups"]) == {str(USER)}
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
        [found] = status[kind]
        assert int(found, 16) == 1 << DAC_READ_SEARCH | 1 << SYS_PTRACE
    assert status["NoNewPrivs"] == ["1"]


def test_agent_stops_cleanly_on_podman_stop(agent: Containers) -> None:
    assert ask(agent).code == 0
    assert agent.stop() == 0, "podman kills an agent that does not stop in time: 137"
    assert "stopped" in agent.log


def test_agent_in_its_own_pid_namespace_refuses_every_caller(containers: Containers) -> None:
    with containers.running(ENTRIES, without=["--pid=host"]):
        refused = ask(containers)
        assert (refused.code, refused.stdout) == (1, "")
        assert "the process is in a PID namespace that is not visible from here" in containers.log


def test_image_has_no_build_tools(containers: Containers) -> None:
    with containers.files() as root:
        files = list(root.rglob("*"))
        assert root / "usr/bin/vouchd" in files
        left = [path for path in files if f"{path.parent.name}/{path.name}" in TOOLS]
        left += [path for path in files if path.name in MODULES or path.suffix in {".deb", ".whl"}]
        left += [root / name for name in REMAINS if (root / name).exists()]
        assert [*left, *(root / "var/lib/apt/lists").iterdir()] == []


def test_user_of_the_image_owns_only_two_directories(containers: Containers) -> None:
    assert containers.podman("image", "inspect", "--format={{.User}}", IMAGE) == "vouchd"
    with containers.files() as root:
        [user] = re.findall(r"^vouchd:x:(\d+):", (root / "etc/passwd").read_text(), re.MULTILINE)
        own = {path for path in root.rglob("*") if path.lstat().st_uid == int(user)}
        assert own == {root / "var/lib/vouchd", root / "run/vouchd"}
