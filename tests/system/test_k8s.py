"""Processes in the cgroup layouts of kubelet, containerd and CRI-O, and a real agent."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import cgroups, raw
from tests.support.agent import REPOSITORY, RunningAgent
from tests.support.asker import Asker, ask_from
from tests.support.kubelet_server import KubeletServer, pod

pytestmark = pytest.mark.system

UID = str(uuid.UUID(int=0x0E5F1C7E61A34D439E7B5F1F64B9A1C4))
ID, OTHER = "a1" * 32, "b2" * 32
CAP_SYS_PTRACE = 19
SLICE = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
LAYOUTS = {
    "cgroupfs": f"kubepods/burstable/pod{UID}/{ID}",
    "cgroupfs, guaranteed": f"kubepods/pod{UID}/{ID}",
    "containerd": f"kubepods.slice/kubepods-burstable.slice/{SLICE}/cri-containerd-{ID}.scope",
    "CRI-O": f"kubepods.slice/kubepods-burstable.slice/{SLICE}/crio-{ID}.scope/container",
    "kind": f"kubelet.slice/kubelet-kubepods.slice/kubelet-{SLICE}/cri-containerd-{ID}.scope",
    "containerd with two drivers": f"system.slice/containerd.service/{SLICE}:cri-containerd:{ID}",
    "Docker in the pod": f"kubepods/burstable/pod{UID}/{ID}/docker/{OTHER}",
}
FORGED = {
    "of a user's manager": f"user.slice/user-1001.slice/user@1001.service/kubepods/pod{UID}/{ID}",
    "of a service": f"system.slice/web.service/kubepods.slice/{SLICE}/cri-containerd-{ID}.scope",
    "below another container": f"kubepods/pod{uuid.UUID(int=7)}/{OTHER}/pod{UID}/{ID}",
    "outside of the kubelet's tree": f"elsewhere/pod{UID}/{ID}",
    "of an unknown runtime": f"sandbox/17/kubepods/burstable/pod{UID}/{ID}",
    "of a build": f"docker/buildkit/kc2mx/kubepods.slice/{SLICE}/cri-containerd-{ID}.scope",
}


@pytest.fixture
def kubelet() -> Iterator[KubeletServer]:
    with KubeletServer() as server:
        yield server


@contextmanager
def asking(agent: RunningAgent, path: str) -> Iterator[Asker]:
    """A process in this cgroup that calls the agent at each request of the test."""
    with ExitStack() as stack:
        place = stack.enter_context(cgroups.directory(path))

        def start(command: list[str]) -> None:
            process = subprocess.Popen([*place.enter_command(), *command], cwd=REPOSITORY)
            stack.callback(process.wait)

        asker = Asker(agent.directory, start)
        stack.callback(asker.close)
        yield asker


def entries(*selectors: str) -> str:
    lines = [
        f"  - {{spiffe_id: /{path}, selectors: ['{selector}']}}"
        for selector in selectors
        for path in [selector.split(":", 1)[1].replace(":", "/")]
    ]
    return "\n".join(["entries:", *lines, ""])


def with_kubelet(kubelet: KubeletServer, **more: object) -> str:
    return f"attestors: {{k8s: {{kubelet: {json.dumps({**kubelet.options, **more})}}}}}"


@pytest.mark.parametrize("path", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_yields_its_selectors_with_and_without_the_kubelet(
    agent_factory: Callable[..., RunningAgent], kubelet: KubeletServer, path: str
) -> None:
    kubelet.pods = [pod("web", UID, app=ID), pod("other", None, app=OTHER)]
    wanted = (f"k8s:pod-uid:{UID}", f"k8s:container-id:{ID}", "k8s:pod-name:web")
    expected = [f"spiffe://example.org/pod-uid/{UID}", f"spiffe://example.org/container-id/{ID}"]
    alone = agent_factory(entries(*wanted), config="attestors: {k8s: {kubelet: off}}")
    with asking(alone, path) as asker:
        assert asker.ask() == expected
        assert asker.ask_in_child() == expected
    asked = agent_factory(entries(*wanted), config=with_kubelet(kubelet))
    with asking(asked, path) as asker:
        assert asker.ask() == [*expected, "spiffe://example.org/pod-name/web"]


@pytest.mark.parametrize("path", FORGED.values(), ids=FORGED.keys())
def test_cgroup_with_the_name_of_a_pod_yields_none_of_its_selectors(
    agent_factory: Callable[..., RunningAgent], kubelet: KubeletServer, path: str
) -> None:
    kubelet.pods = [pod("web", UID, app=ID), pod("attacker", str(uuid.UUID(int=7)), app=OTHER)]
    victims = entries(f"k8s:pod-uid:{UID}", f"k8s:container-id:{ID}", "k8s:pod-name:web")
    for config in ("attestors: {k8s: {}}", with_kubelet(kubelet)):
        agent = agent_factory(victims, config=config)
        with asking(agent, path) as asker:
            assert asker.ask() == raw.PERMISSION_DENIED


def test_caller_waits_for_a_container_that_is_listed_late(
    agent_factory: Callable[..., RunningAgent], kubelet: KubeletServer
) -> None:
    kubelet.pods = [pod("web", UID)]
    agent = agent_factory(entries("k8s:pod-name:web"), config=with_kubelet(kubelet))
    path = LAYOUTS["containerd"]

    def list_it() -> None:
        kubelet.pods = [pod("web", UID, app=ID)]

    kubelet.when_asked = {3: list_it}
    with asking(agent, path) as asker:
        assert asker.ask() == ["spiffe://example.org/pod-name/web"]
    assert 3 <= kubelet.asked <= 4


def test_failed_kubelet_is_in_the_log_and_the_caller_gets_its_identity_later(
    agent_factory: Callable[..., RunningAgent], kubelet: KubeletServer
) -> None:
    kubelet.pods = [pod("web", UID, app=ID)]
    kubelet.code, kubelet.body = 500, b"not today"
    agent = agent_factory(entries("k8s:pod-name:web"), config=with_kubelet(kubelet))
    with asking(agent, LAYOUTS["containerd"]) as asker:
        assert asker.ask() == raw.UNAVAILABLE
        assert "not today" in agent.wait_for_log("attestor failed")
        kubelet.code, kubelet.body = 200, None
        assert asker.ask() == ["spiffe://example.org/pod-name/web"]
    assert kubelet.token not in agent.log


def test_capabilities_of_the_manifest_suffice(
    agent_factory: Callable[..., RunningAgent], kubelet: KubeletServer
) -> None:
    """deploy/kubernetes/agent.yaml drops all capabilities but SYS_PTRACE."""
    kubelet.pods = [pod("web", UID, app=ID)]
    rights = ("setpriv", "--bounding-set=-all,+sys_ptrace", "--inh-caps=-all", "--no-new-privs")
    agent = agent_factory(entries("k8s:pod-name:web"), config=with_kubelet(kubelet), prefix=rights)
    [effective] = re.findall(r"CapEff:\s*(\w+)", Path(f"/proc/{agent.pid}/status").read_text())
    assert int(effective, 16) == 1 << CAP_SYS_PTRACE
    with cgroups.directory(LAYOUTS["containerd"]) as place:
        for uid in (0, 1001):
            assert ask_from(agent, place, uid) == ["spiffe://example.org/pod-name/web"]


def test_kubelet_is_not_asked_about_a_process_in_no_pod(
    agent_factory: Callable[..., RunningAgent], kubelet: KubeletServer, tmp_path: Path
) -> None:
    agent = agent_factory(entries("k8s:pod-name:web"), config=with_kubelet(kubelet))
    with asking(agent, f"system.slice/{tmp_path.name}.service") as asker:
        assert asker.ask() == raw.PERMISSION_DENIED
    assert kubelet.asked == 0
