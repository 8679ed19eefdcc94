"""The cgroup of an account, from the content of /proc/PID/cgroup."""

from __future__ import annotations

import pytest

from agent.kernel.account import cgroup_of

ID = "a" * 64


@pytest.mark.parametrize(
    ("text", "cgroup"),
    [
        (b"0::/\n", ""),
        (b"", ""),
        (b"nonsense\n", ""),
        (b"0::/system.slice/web.service\n", "system.slice/web.service"),
        (b"0::/system.slice/web.service/made/by/web\n", "system.slice/web.service"),
        (
            b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope\n",
            "user.slice/user-1000.slice",
        ),
        (b"0::/user.slice/user-1000.slice/session-3.scope\n", "user.slice/user-1000.slice"),
        (f"0::/docker/{ID}/docker/{ID}\n".encode(), f"docker/{ID}"),
        (f"0::/kubepods/pod1/{ID}/init.scope\n".encode(), f"kubepods/pod1/{ID}"),
        (
            f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope/x\n".encode(),
            f"kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
        ),
        (b"0::/lxc.payload.web/system.slice/made.service\n", "lxc.payload.web"),
        (b"0::/lxc/101/ns/made/by/its/root\n", "lxc/101"),
        # Version 1 and hybrid: the hierarchy of systemd, if there is one.
        (
            b"4:memory:/a\n1:name=systemd:/system.slice/b.service/c\n0::/\n",
            "system.slice/b.service",
        ),
        (b"4:memory:/a/b\n3:cpu,cpuacct:/\n", "a/b"),
        (b"0::/\xff.service/x\n", "\udcff.service"),
    ],
)
def test_the_cgroup_of_an_account_ends_at_the_unit_slice_or_container(
    text: bytes, cgroup: str
) -> None:
    assert cgroup_of(text) == cgroup
