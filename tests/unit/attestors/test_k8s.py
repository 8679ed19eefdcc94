"""The k8s attestor and a kubelet that is slow, wrong, or late."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from attestors.api import AttestorContext, AttestorError
from attestors.k8s import K8sAttestor, K8sOptions
from attestors.lib.kubelet import ANSWER_SECONDS, FRESH_SECONDS, KubeletOptions, PodLists
from attestors.lib.pods import POD_BYTES
from tests.support.agent import SAFETY_SECONDS
from tests.support.findings import closing, until, values
from tests.support.kubelet_server import KubeletServer, pod, status
from tests.support.workload import Workload

UID = "0e5f1c7e-61a3-4d43-9e7b-5f1f64b9a1c4"
ID, OTHER = "a" * 64, "b" * 64
SLICE = f"kubepods-besteffort-pod{UID.replace('-', '_')}.slice"
IN_POD = Workload(
    cgroup=f"0::/kubepods.slice/kubepods-besteffort.slice/{SLICE}/cri-containerd-{ID}.scope\n".encode()
)
PROVED = {f"pod-uid:{UID}", f"container-id:{ID}"}


def attestor(
    server: KubeletServer | None = None,
    *,
    fresh_seconds: float = FRESH_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
    **more: Any,
) -> AbstractAsyncContextManager[K8sAttestor]:
    kubelet = "off" if server is None else {**server.options, **more}
    options = K8sOptions.model_validate({"kubelet": kubelet})
    lists = partial(
        PodLists,
        spacing_seconds=0.01,
        fresh_seconds=fresh_seconds,
        answer_seconds=answer_seconds,
    )
    return closing(K8sAttestor(options, AttestorContext(), lists))


async def test_cgroup_alone_proves_pod_and_container() -> None:
    async with attestor() as k8s:
        assert values(await k8s.attest(IN_POD)) == PROVED


@pytest.mark.parametrize(
    "cgroup",
    [
        b"0::/\n",
        f"0::/system.slice/docker-{ID}.scope\n".encode(),
        f"0::/../libpod-{ID}.scope\n".encode(),
        f"0::/../sandbox/crio-{ID}.scope\n".encode(),
        f"0::/../../sandbox/kubepods/pod{UID}/{ID}\n".encode(),
        f"0::/../../system.slice/docker-{ID}.scope\n".encode(),
        f"0::/sandbox/kubepods/pod{UID}/{ID}\n".encode(),
        f"0::/user.slice/user-7.slice/user@7.service/kubepods/pod{UID}/{ID}\n".encode(),
    ],
)
async def test_kubelet_is_not_asked_about_a_process_in_no_pod(cgroup: bytes) -> None:
    with KubeletServer() as kubelet:
        async with attestor(kubelet) as k8s:
            findings = await k8s.attest(Workload(cgroup=cgroup))
        assert kubelet.asked == 0
    assert not findings.selectors
    assert not findings.pending
    assert (
        not findings.notes
        if ID not in cgroup.decode()
        else "kubelet's cgroups" in findings.notes[0]
    )


async def test_description_of_the_kubelet_becomes_selectors() -> None:
    listed = pod("web", UID, app=ID, sidecar=OTHER)
    listed["status"]["initContainerStatuses"] = [status("setup", "c" * 64)]
    with KubeletServer() as kubelet:
        kubelet.pods = [pod("other", None, x="d" * 64), listed]
        async with attestor(kubelet) as k8s:
            found = values(await k8s.attest(IN_POD))
    images = {
        f"{kind}:registry.example/{name}{tag}"
        for kind, name in [
            ("pod-image", "app"),
            ("pod-image", "sidecar"),
            ("pod-init-image", "setup"),
            ("container-image", "app"),
        ]
        for tag in (":1", f"@sha256:{'1' * 64}")
    }
    assert found == PROVED | images | {
        "ns:shop",
        "sa:web-account",
        "node-name:node-1",
        "pod-name:web",
        "pod-label:app:web",
        "pod-label:tier:front",
        "pod-owner:ReplicaSet:web-7d",
        "pod-owner-uid:ReplicaSet:u-1",
        "pod-image-count:2",
        "pod-init-image-count:1",
        "container-name:app",
        "container-type:container",
    }


@pytest.mark.parametrize(
    ("key", "kind"),
    [("ephemeralContainerStatuses", "ephemeral"), ("initContainerStatuses", "init")],
)
async def test_container_of_another_kind_has_its_type(key: str, kind: str) -> None:
    listed = pod("web", UID, app=OTHER)
    listed["status"][key] = [status("debug", ID)]
    with KubeletServer() as kubelet:
        kubelet.pods = [listed]
        async with attestor(kubelet) as k8s:
            found = values(await k8s.attest(IN_POD))
    assert {"container-name:debug", f"container-type:{kind}", "pod-name:web"} <= found


async def test_static_pod_is_found_by_its_hash() -> None:
    listed = pod("static", UID, app=ID)
    listed["metadata"]["annotations"] = {"kubernetes.io/config.hash": "f" * 32}
    with KubeletServer() as kubelet:
        kubelet.pods = [listed]
        async with attestor(kubelet) as k8s:
            found = values(
                await k8s.attest(Workload(f"0::/kubepods/burstable/pod{'f' * 32}/{ID}\n".encode()))
            )
    assert {"pod-name:static", f"pod-uid:{UID}"} <= found


async def test_cgroup_without_the_pod_is_found_by_its_container() -> None:
    with KubeletServer() as kubelet:
        kubelet.pods = [pod("web", UID, app=ID)]
        async with attestor(kubelet) as k8s:
            found = values(await k8s.attest(Workload(f"0::/../crio-{ID}.scope\n".encode())))
    assert found >= PROVED


@pytest.mark.parametrize(
    "others", [[pod("liar", None, app=ID)], [pod("web", UID, app=ID), pod("twin", None, app=ID)]]
)
async def test_kubelet_that_contradicts_the_cgroup_adds_no_selectors(
    others: list[dict[str, Any]],
) -> None:
    with KubeletServer() as kubelet:
        kubelet.pods = others
        async with attestor(kubelet) as k8s:
            findings = await k8s.attest(IN_POD)
    assert values(findings) == PROVED
    assert "its cgroup says" in findings.pending[0]


# --- the wait -------------------------------------------------------------------------------------


async def test_caller_waits_until_its_container_is_listed() -> None:
    listed = pod("web", UID)
    with KubeletServer() as kubelet:
        kubelet.pods = [listed]
        async with attestor(kubelet) as k8s, asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(k8s.attest(IN_POD))
            await until(lambda: kubelet.asked >= 3)
            assert not waiting.done()
            kubelet.pods = [pod("web", UID, app=ID)]
            assert "pod-name:web" in values(await waiting)


async def test_wait_ends_after_wait_seconds() -> None:
    with KubeletServer() as kubelet:
        async with attestor(kubelet, wait_seconds=0.05) as k8s:
            findings = await k8s.attest(IN_POD)
    assert values(findings) == PROVED
    assert "does not list container aaaaaaaaaaaa yet" in findings.pending[0]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_pod_that_has_ended_is_not_waited_for(phase: str) -> None:
    listed = pod("web", UID)
    listed["status"]["phase"] = phase
    with KubeletServer() as kubelet:
        kubelet.pods = [listed]
        async with attestor(kubelet, wait_seconds=20) as k8s:
            findings = await k8s.attest(IN_POD)
    assert "has ended" in findings.notes[0]
    assert not findings.pending


async def test_200_callers_cost_one_request_and_the_next_none() -> None:
    with KubeletServer() as kubelet:
        kubelet.pods = [pod("web", UID, app=ID)]
        kubelet.allow.clear()
        async with attestor(kubelet) as k8s, asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(k8s.attest(IN_POD)) for _ in range(200)]
            await until(lambda: kubelet.asked)
            kubelet.allow.set()
            for each in asking:
                assert "pod-name:web" in values(await each)
            assert "pod-name:web" in values(await k8s.attest(IN_POD))
        assert kubelet.asked == 1


# --- a kubelet that misbehaves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "body", "reason"),
    [
        (500, b"boom", "HTTP status 500: 'boom'"),
        (403, b"Forbidden", "need `get` on nodes/proxy"),
        (200, b'{"items": [{"metadata"', "breaks off after 0 pods"),
        (200, b"<html>", "breaks off after 0 pods"),
        (200, b'{"items": [{}]}', "pod 1 of the list: metadata"),
        (200, b'{"items": [7]}', "pod 1 of the list: "),
        (200, b'{"items": [' + b"[" * 200_000, "too deep"),
        (
            200,
            b'{"items": [%b %b]}' % ((json.dumps(pod()).encode(),) * 2),
            "breaks off after 1 pods",
        ),
        (200, b'{"items": ["\xff"]}', "not UTF-8"),
        (200, b'{"items": [' + b"x" * (POD_BYTES + 1), "pod 1 of the list is too long or no JSON"),
    ],
)
async def test_answer_that_is_no_pod_list_is_a_failure_with_a_reason(
    code: int, body: bytes, reason: str
) -> None:
    with KubeletServer() as kubelet:
        kubelet.code, kubelet.body = code, body
        async with attestor(kubelet) as k8s:
            findings = await k8s.attest(IN_POD)
    assert values(findings) == PROVED
    assert reason in findings.pending[0]
    assert f"the kubelet at https://127.0.0.1:{kubelet.port}/pods" in findings.pending[0]


async def test_kubelet_that_is_not_there_is_a_failure() -> None:
    with KubeletServer() as kubelet:
        async with attestor(kubelet, port=1) as k8s:
            [reason] = (await k8s.attest(IN_POD)).pending
    assert "Connect" in reason


async def test_kubelet_that_does_not_answer_is_asked_again() -> None:
    with KubeletServer() as kubelet:
        kubelet.pods = [pod("web", UID, app=ID)]
        kubelet.allow.clear()
        async with attestor(kubelet, answer_seconds=0.2) as k8s:
            assert "no answer in time" in (await k8s.attest(IN_POD)).pending[0]
            kubelet.allow.set()
            await until_answered(k8s)


async def test_certificate_for_another_node_or_of_another_ca_is_refused() -> None:
    with KubeletServer() as kubelet:
        kubelet.pods = [pod("web", UID, app=ID)]
        async with attestor(kubelet, node_name="node-2") as k8s:
            assert "node-2" in (await k8s.attest(IN_POD)).pending[0]
        ours = (kubelet.directory / "ca.crt").read_bytes()
        kubelet.renew()
        (kubelet.directory / "ca.crt").write_bytes(ours)
        async with attestor(kubelet) as k8s:
            assert "certificate verify failed" in (await k8s.attest(IN_POD)).pending[0]
        assert kubelet.asked == 0


async def test_changed_token_and_ca_are_read_again() -> None:
    with KubeletServer() as kubelet:
        kubelet.pods = [pod("web", UID, app=ID)]
        async with attestor(kubelet, fresh_seconds=0.0) as k8s:
            assert "pod-name:web" in values(await k8s.attest(IN_POD))
            kubelet.renew_token()
            assert "pod-name:web" in values(await k8s.attest(IN_POD))
            kubelet.renew()
            assert "pod-name:web" in values(await k8s.attest(IN_POD))


async def test_client_certificate_replaces_the_token() -> None:
    with KubeletServer() as kubelet:
        kubelet.pods = [pod("web", UID, app=ID)]
        kubelet.require_client_certificate()
        pair = str(kubelet.directory / "serving.pem")
        async with attestor(kubelet) as k8s:
            assert (await k8s.attest(IN_POD)).pending
        async with attestor(kubelet, token_file=None, certificate_file=pair, key_file=pair) as k8s:
            assert "pod-name:web" in values(await k8s.attest(IN_POD))
    assert kubelet.authorizations == [None]


async def test_token_of_the_agents_own_pod_is_the_default() -> None:
    with KubeletServer() as kubelet:
        async with attestor(kubelet, token_file=None) as k8s:
            [reason] = (await k8s.attest(IN_POD)).pending
    assert "cannot be read from /var/run/secrets/kubernetes.io/serviceaccount/token" in reason


async def test_read_only_port_gets_no_token() -> None:
    with KubeletServer(tls=False) as kubelet:
        kubelet.pods = [pod("web", UID, app=ID)]
        async with attestor(kubelet) as k8s:
            assert "pod-name:web" in values(await k8s.attest(IN_POD))
    assert kubelet.authorizations == [None]


async def test_close_does_not_wait_for_a_slow_kubelet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with KubeletServer() as kubelet:
        kubelet.allow.clear()
        async with attestor(kubelet) as k8s:
            asking = asyncio.get_running_loop().create_task(k8s.attest(IN_POD))
            await until(lambda: kubelet.asked)
        with pytest.raises(asyncio.CancelledError):
            await asking
    gc.collect()
    assert not caplog.records, "a request was left in progress"


@pytest.mark.parametrize("name", ["token_file", "ca_file"])
async def test_missing_file_is_named(name: str) -> None:
    wrong: dict[str, Any] = {name: "/nowhere/x"}
    with KubeletServer() as kubelet:
        async with attestor(kubelet, **wrong) as k8s:
            [reason] = (await k8s.attest(IN_POD)).pending
    assert "from /nowhere/x: No such file" in reason


@pytest.mark.parametrize("content", ["", "a: b\nc: d\n", "t\0ken", "tök\xff", "token\nX-Header: x"])
async def test_token_file_with_other_content_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    with KubeletServer() as kubelet:
        async with attestor(kubelet, token_file=str(tmp_path / "file")) as k8s:
            [reason] = (await k8s.attest(IN_POD)).pending
        assert kubelet.asked == 0
    assert f"the content of {tmp_path}/file is not a bearer token" in reason


async def test_certificate_file_with_other_content_is_named(tmp_path: Path) -> None:
    wrong = str(tmp_path / "file")
    Path(wrong).write_text("hello")
    with KubeletServer() as kubelet:
        async with attestor(kubelet, ca_file=wrong) as k8s:
            [of_ca] = (await k8s.attest(IN_POD)).pending
        async with attestor(kubelet, certificate_file=wrong, key_file=wrong) as k8s:
            [of_own] = (await k8s.attest(IN_POD)).pending
    assert f"its CA cannot be loaded from {wrong}: " in of_ca
    assert f"the client certificate cannot be loaded from {wrong} and {wrong}: " in of_own


async def until_answered(k8s: K8sAttestor) -> None:
    async with asyncio.timeout(SAFETY_SECONDS):
        while "pod-name:web" not in values(await k8s.attest(IN_POD)):
            pass


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "give node_name or node_name_env"),
        ({"node_name": "a", "node_name_env": "B"}, "give node_name or node_name_env"),
        ({"node_name": "a", "key_file": "/k"}, "belong together"),
        ({"read_only_port": 1, "token_file": "/t"}, "needs no credentials"),
        ({"read_only_port": 1, "certificate_file": "/c", "key_file": "/k"}, "needs no credentials"),
        ({"node_name": "a", "token_file": "k"}, "is not an absolute path"),
        ({"node_name": "a", "wait_seconds": 21}, "less than or equal to 20"),
        ({"node_name": "a", "host": "https://node"}, "is not a host name or address"),
        ({"node_name": "a", "host": "node:10250"}, "is not a host name or address"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        K8sOptions.model_validate({"kubelet": options})


def test_url_of_the_kubelet() -> None:
    assert KubeletOptions(node_name="a", host="::1").url == "https://[::1]:10250/pods"
    assert KubeletOptions(read_only_port=7, host="node").url == "http://node:7/pods"


def test_name_of_the_node_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = K8sOptions.model_validate({"kubelet": {"node_name_env": "MY_NODE"}})
    with pytest.raises(AttestorError, match=r"\$MY_NODE is not set"):
        K8sAttestor(options, AttestorContext())
    monkeypatch.setenv("MY_NODE", "node-9")
    K8sAttestor(options, AttestorContext())
    assert options.kubelet
    assert options.kubelet.server_name == "node-9"
