"""A process that creates cgroups below its own never becomes another container's process."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from attestors.lib.cgroups import CgroupError, Engine, locate

OWN, VICTIM = "a" * 64, "b" * 64
POD = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
# Cgroups in which a container's processes may create directories.
CONTAINERS = [
    f"/docker/{OWN}",
    f"/system.slice/docker-{OWN}.scope",
    f"/machine.slice/libpod-{OWN}.scope",
    f"/kubepods/burstable/pod{POD}/{OWN}",
    f"/kubepods.slice/kubepods-pod{POD}.slice/cri-containerd-{OWN}.scope",
    f"/../{OWN}",
    f"/system.slice/web.service/libpod-payload-{OWN}",
]
ELSEWHERE = [
    "/system.slice/build.service",
    "/user.slice/user-1000.slice/session-1.scope",
    "/machine.slice/machine-web.scope",
    "/lxc.payload.web",
    "/lxc/web",
    "/user/alice/0",
]
USER = "/user.slice/user-1000.slice/user@1000.service"

NAMES = [
    "docker",
    "kubepods",
    "kubepods.slice",
    "system.slice",
    "containerd.service",
    "user@0.service",
    "user.slice",
    "libpod_parent",
    "libpod",
    "ecs",
    "c" * 32,
    f"{'c' * 32}-12",
    f"pod{VICTIM[:8]}-440c-66ac-9084-e0fc1d8a910c",
    f"kubepods-pod{VICTIM[:8]}_440c_66ac_9084_e0fc1d8a910c.slice",
    VICTIM,
    f"docker-{VICTIM}.scope",
    f"libpod-{VICTIM}.scope",
    f"cri-containerd-{VICTIM}.scope",
    f"crio-{VICTIM}.scope",
    f"x:cri-containerd:{VICTIM}",
    "x\u2028 2:cpu:", "x\x0b0::", "x\r2:cpu:", f"x\x85{VICTIM}",
]  # fmt: skip
# The name of a cgroup may contain any character but these (cgroup_mkdir refuses \n).
names = st.sampled_from(NAMES) | st.text(
    st.characters(exclude_characters="/\n\0", codec="utf-8"), min_size=1
).filter(lambda name: name not in {".", ".."})
forged = st.lists(names, max_size=6).map(lambda parts: "".join(f"/{part}" for part in parts))
hierarchies = st.sampled_from(["0::", "2:cpu:", "1:name=systemd:"])


@given(hierarchies, st.sampled_from(CONTAINERS), forged)
def test_process_below_a_container_is_in_that_container(
    hierarchy: str, prefix: str, rest: str
) -> None:
    alone = locate(f"{hierarchy}{prefix}\n".encode()).container
    assert alone is not None
    assert alone.id == OWN
    assert locate(f"{hierarchy}{prefix}{rest}\n".encode()).container == alone


@given(hierarchies, st.sampled_from(ELSEWHERE), forged)
def test_process_below_a_service_or_session_is_in_no_container(
    hierarchy: str, prefix: str, rest: str
) -> None:
    found = locate(f"{hierarchy}{prefix}{rest}\n".encode()).container
    # One form is that of Podman under systemd; its engine has to confirm it.
    assert found is None or (found.engine is Engine.PODMAN and not found.pod_uid)


@given(hierarchies, forged)
def test_container_below_a_users_manager_is_that_users(hierarchy: str, rest: str) -> None:
    found = locate(f"{hierarchy}{USER}{rest}\n".encode()).container
    assert found is None or found.owner_uid == 1000


@given(st.binary())
def test_any_text_is_parsed_or_refused(text: bytes) -> None:
    with suppress(CgroupError):
        locate(text)
