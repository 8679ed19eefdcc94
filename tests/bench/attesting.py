"""Latency of each attestor: first and repeated, for one caller and for many at once."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import click

from agent.kernel.caller import identify
from attestors.api import Attestor, AttestorContext, WorkloadRef
from attestors.docker import DockerAttestor, DockerOptions
from attestors.k8s import K8sAttestor, K8sOptions
from attestors.lib.kubelet import KubeletOptions, PodLists
from attestors.systemd import SystemdAttestor, SystemdOptions
from attestors.unix import UnixAttestor, UnixOptions
from tests.bench.findings import OURS, Budget, Finding
from tests.support.engine_server import EngineServer, containers
from tests.support.kubelet_server import KubeletServer, pod
from tests.support.system_bus import SystemBus
from tests.support.workload import Workload

CALLERS = (1, 20, 200)
AGAIN = 5
ID, UID = "a" * 64, "0e5f1c7e-61a3-4d43-9e7b-5f1f64b9a1c4"
DOCKER = f"0::/system.slice/docker-{ID}.scope\n".encode()
POD = f"0::/kubepods/burstable/pod{UID}/{ID}\n".encode()
PODS = 110
LISTED = (500, 1500, 5000)
LOOP_BUDGET_MS = 50.0
LONG = "k8s: a list of so many pods"
Making = Callable[[], Attestor]


def measure() -> list[Finding]:
    """Measure the milliseconds until the last caller has its selectors, and a long pod list."""
    long = (finding for pods in LISTED for finding in asyncio.run(_long_list(pods)))
    return [*asyncio.run(_measure()), *long]


async def _measure() -> list[Finding]:
    near, far = socket.socketpair()
    with near, far, closing(identify(near)) as me, me.open_proc() as process:
        unix = await _rows("unix", process, lambda: UnixAttestor(UnixOptions(), AttestorContext()))
        systemd = await _systemd(process)
    return [*unix, *await _docker(), *await _k8s(), *systemd]


async def _long_list(count: int) -> list[Finding]:
    """Measure a pod list: the total time, and the part that blocks the event loop."""
    with KubeletServer() as kubelet:
        pods = [_long_pod(number) for number in range(count)]
        kubelet.body = json.dumps({"kind": "PodList", "items": pods}).encode()
        options = K8sOptions.model_validate({"kubelet": kubelet.options}).kubelet
        assert isinstance(options, KubeletOptions)
        lists = PodLists(options)
        loop = asyncio.get_running_loop()
        began, cpu = time.perf_counter(), time.thread_time()
        found = await lists.since(loop.time())
        assert len(found.pods) == count
        values = {
            "until it is there, ms": 1000 * (time.perf_counter() - began),
            "CPU of the loop, ms": 1000 * (time.thread_time() - cpu),
        }
        await lists.close()
    return [
        Finding(
            scenario=LONG,
            measure=measure,
            size=count,
            values={OURS: [value]},
            budget=(
                Budget(most=LOOP_BUDGET_MS)
                if measure.startswith("CPU") and count == LISTED[-1]
                else None
            ),
        )
        for measure, value in values.items()
    ]


def _long_pod(number: int) -> dict[str, object]:
    """Return a pod of about 7 KB, a usual size with managed fields and variables."""
    long = pod(f"web-{number}", None, app=f"{number:064x}")
    fields = {f"f:key-{each}": {"f:value": "y" * 40} for each in range(60)}
    long["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": fields}]
    variables = [{"name": f"VARIABLE_{each}", "value": "z" * 30} for each in range(40)]
    long["spec"]["containers"] = [{"name": "app", "env": variables}]
    return long


async def _docker() -> list[Finding]:
    async with EngineServer() as engine:
        engine.add(ID)
        options = DockerOptions(socket=str(engine.path))
        of_engine = partial(containers, cgroup=DOCKER)
        make = partial(DockerAttestor, options, AttestorContext(), of_engine)
        outside = await _rows("docker, in no container", Workload(b"0::/\n"), make)
        return [*outside, *await _rows("docker", Workload(DOCKER), make)]


async def _k8s() -> list[Finding]:
    with KubeletServer() as kubelet:
        lists = partial(PodLists, spacing_seconds=0.0)
        kubelet.pods = [pod(f"p{i}") for i in range(PODS)] + [pod("web", UID, app=ID)]
        rows = []
        for name, options in (("k8s, kubelet off", "off"), ("k8s", kubelet.options)):
            parsed = K8sOptions.model_validate({"kubelet": options})
            make = partial(K8sAttestor, parsed, AttestorContext(), lists)
            rows += await _rows(name, Workload(POD), make)
        return rows


async def _systemd(process: WorkloadRef) -> list[Finding]:
    if shutil.which("dbus-daemon") is None:
        lacking = "dbus-daemon not found (Debian: dbus-daemon)"
        click.echo(f"attestors: systemd left out, {lacking}", err=True)
        return []
    async with SystemBus() as bus:
        # By PID: the D-Bus library of the fake manager mixes up concurrently received descriptors.
        bus.methods.remove("GetUnitByPIDFD")
        options = SystemdOptions(bus=bus.address)
        return await _rows("systemd", process, lambda: SystemdAttestor(options, AttestorContext()))


async def _rows(name: str, workload: WorkloadRef, make: Making) -> list[Finding]:
    return [
        finding
        for callers in CALLERS
        for finding in await _first_and_again(name, workload, make(), callers)
    ]


async def _first_and_again(
    name: str, workload: WorkloadRef, attestor: Attestor, callers: int
) -> list[Finding]:
    try:
        values = {
            "first, ms": [await _milliseconds(attestor, workload, callers)],
            "again, ms": [await _milliseconds(attestor, workload, callers) for _ in range(AGAIN)],
        }
    finally:
        await attestor.close()
    return [
        Finding(
            scenario=f"attestation of callers at once: {name}",
            measure=measure,
            size=callers,
            values={OURS: several},
        )
        for measure, several in values.items()
    ]


async def _milliseconds(attestor: Attestor, workload: WorkloadRef, callers: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(attestor.attest(workload) for _ in range(callers)))
    return 1000 * (time.perf_counter() - began)
