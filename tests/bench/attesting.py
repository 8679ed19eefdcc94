"""What each attestor takes: the first time and again, for one caller and for 200 at once."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from agent.peer import identify
from attestors import _kubelet
from attestors._kubelet import KubeletOptions, PodLists
from attestors.api import AttestorContext
from attestors.docker import DockerAttestor, DockerOptions
from attestors.k8s import K8sAttestor, K8sOptions
from attestors.systemd import SystemdAttestor, SystemdOptions
from attestors.unix import UnixAttestor, UnixOptions
from tests.support.engine_server import EngineServer, kernel_says
from tests.support.kubelet_server import KubeletServer, pod
from tests.support.system_bus import SystemBus
from tests.support.workload import Workload

if TYPE_CHECKING:
    from attestors.api import Attestor, WorkloadRef

MANY = 200
ID, UID = "a" * 64, "0e5f1c7e-61a3-4d43-9e7b-5f1f64b9a1c4"
DOCKER = f"0::/system.slice/docker-{ID}.scope\n".encode()
POD = f"0::/kubepods/burstable/pod{UID}/{ID}\n".encode()
PODS = 110
LONG = "a list of 5,000 pods, and what of it the agent's own event loop pays (budget 50 ms)"


def measure() -> dict[str, list[dict[str, object]]]:
    """Milliseconds until the last of them has its answer; and the price of a long list."""
    rows = asyncio.run(_measure())
    return {
        "attestation, until the last caller has its answer": rows,
        LONG: [asyncio.run(_long_list())],
    }


async def _measure() -> list[dict[str, object]]:
    near, far = socket.socketpair()
    with near, far, closing(identify(near)) as me, me.open_proc() as process:
        unix = await _rows("unix", process, lambda: UnixAttestor(UnixOptions(), AttestorContext()))
        systemd = await _systemd(process) if shutil.which("dbus-daemon") else []
    return [*unix, *await _docker(), *await _k8s(), *systemd]


async def _long_list() -> dict[str, object]:
    with KubeletServer() as kubelet:
        pods = [_long_pod(number) for number in range(5000)]
        kubelet.body = json.dumps({"kind": "PodList", "items": pods}).encode()
        options = K8sOptions.model_validate({"kubelet": kubelet.options}).kubelet
        assert isinstance(options, KubeletOptions)
        lists = PodLists(options)
        loop = asyncio.get_running_loop()
        began, cpu = time.perf_counter(), time.thread_time()
        found = await lists.since(loop.time())
        row: dict[str, object] = {
            "pods": len(found.pods),
            "megabytes": round(len(kubelet.body) / 1e6, 1),
            "seconds": round(time.perf_counter() - began, 2),
            "loop_cpu_ms": round(1000 * (time.thread_time() - cpu), 2),
        }
        await lists.close()
        return row


def _long_pod(number: int) -> dict[str, object]:
    """A pod of some 7 KB, as usual with managed fields and a few variables."""
    long = pod(f"web-{number}", None, app=f"{number:064x}")
    fields = {f"f:key-{each}": {"f:value": "y" * 40} for each in range(60)}
    long["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": fields}]
    variables = [{"name": f"VARIABLE_{each}", "value": "z" * 30} for each in range(40)]
    long["spec"]["containers"] = [{"name": "app", "env": variables}]
    return long


async def _docker() -> list[dict[str, object]]:
    with kernel_says(DOCKER):
        async with EngineServer() as engine:
            engine.add(ID)
            options = DockerOptions(socket=str(engine.path))
            make = lambda: DockerAttestor(options, AttestorContext())  # noqa: E731
            outside = await _rows("docker, in no container", Workload(b"0::/\n"), make)
            return [*outside, *await _rows("docker", Workload(DOCKER), make)]


async def _k8s() -> list[dict[str, object]]:
    with KubeletServer() as kubelet, patch.object(_kubelet, "SPACING_SECONDS", 0.0):
        kubelet.pods = [pod(f"p{i}") for i in range(PODS)] + [pod("web", UID, app=ID)]
        rows = []
        for name, options in (("k8s, kubelet off", "off"), ("k8s", kubelet.options)):
            parsed = K8sOptions.model_validate({"kubelet": options})
            rows += await _rows(
                name, Workload(POD), lambda o=parsed: K8sAttestor(o, AttestorContext())
            )
        return rows


async def _systemd(process: WorkloadRef) -> list[dict[str, object]]:
    async with SystemBus() as bus:
        # By PID: the library that plays the manager mixes up descriptors it receives at once.
        bus.methods.remove("GetUnitByPIDFD")
        options = SystemdOptions(bus=bus.address)
        return await _rows("systemd", process, lambda: SystemdAttestor(options, AttestorContext()))


async def _rows(name: str, workload: WorkloadRef, make: Any) -> list[dict[str, object]]:
    rows = []
    for callers in (1, MANY):
        attestor = make()
        try:
            first = await _milliseconds(attestor, workload, callers)
            again = min([await _milliseconds(attestor, workload, callers) for _ in range(5)])
        finally:
            await attestor.close()
        rows.append(
            {
                "attestor": name,
                "callers": callers,
                "first_ms": round(first, 2),
                "again_ms": round(again, 2),
            }
        )
    return rows


async def _milliseconds(attestor: Attestor, workload: WorkloadRef, callers: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(attestor.attest(workload) for _ in range(callers)))
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()))
