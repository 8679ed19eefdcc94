"""Rootless Podman of a user without an account on this host (needs root, to change the UID)."""

from __future__ import annotations

import os
import select
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support import cgroups
from tests.support.agent import REPOSITORY, SAFETY_SECONDS
from tests.support.engine import mounts
from tests.support.podman import OPTIONS, Podman

# The user owns a part of the cgroup tree, as under systemd. The user, its subordinate IDs and the
# mounts of its containers exist in this mount namespace only.
_BECOME = """
set -e
own=$1 uid=$2 place=$3; shift 3
mount --make-rprivate /
for file in passwd group subuid subgid; do mount --bind $own/$file /etc/$file; done
for link in $own/shared/*.from; do mount --bind $(cat $link) ${link%.from}; done
mount -t cgroup2 none /sys/fs/cgroup
chown -R $uid:$uid /sys/fs/cgroup/$place
exec setpriv --reuid=$uid --regid=$uid --clear-groups env -i PATH=$PATH HOME=$own/home \
    XDG_RUNTIME_DIR=$own/run NOTIFY_SOCKET=$NOTIFY_SOCKET "$@"
"""


class RootlessPodman(Podman):
    """`podman system service` of the user `uid`; `place` is the user's cgroup."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.place = f"user.slice/user-{uid}.slice/user@{uid}.service"
        self._shared = [REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
        with ExitStack() as held:
            self._cgroup = held.enter_context(cgroups.directory(f"{self.place}/user.slice/engine"))
            super().__init__()
            self._held = held.pop_all()

    def close(self) -> None:
        """Remove everything."""
        with self._held:
            super().close()

    def _set_up(self) -> tuple[list[str], list[str]]:
        self.directory.chmod(0o755)
        files = {
            "passwd": f"root:x:0:0::/root:/bin/sh\nowner:x:{self.uid}:{self.uid}::/:/bin/sh\n",
            "group": f"root:x:0:\nowner:x:{self.uid}:\n",
            "subuid": "owner:3000000:65536\n",
            "subgid": "owner:3000000:65536\n",
        }
        for name, text in files.items():
            (self.directory / name).write_text(text)
        for name in ("home", "run"):
            (self.directory / name).mkdir()
            os.chown(self.directory / name, self.uid, self.uid)
        (self.directory / "shared").mkdir()
        for number, path in enumerate(self._shared):
            (self.directory / f"shared/{number}").mkdir()
            (self.directory / f"shared/{number}.from").write_text(str(path))
        self.socket = self.directory / f"run/{self.uid}.sock"
        become = ("sh", "-c", _BECOME, "sh", str(self.directory), str(self.uid), self.place)
        service = [*self._cgroup.enter_command(), "unshare", "--mount", *become, "podman", *OPTIONS]
        return ["podman", "--remote", f"--url=unix://{self.socket}"], service

    def _mounts(self, agent: Path) -> list[str]:
        """Return the mounts by paths that the user can reach, unlike the repository's."""
        found = mounts(agent)
        for number, path in enumerate(self._shared):
            found = [
                each.replace(f"={path}:", f"={self.directory}/shared/{number}:") for each in found
            ]
        return found

    def _end(self) -> None:
        super()._end()
        # Podman's pause process holds the user's namespaces while no container runs.
        for root in cgroups.hierarchies():
            if (kill := root / self.place / "cgroup.kill").exists():
                kill.write_text("1")
                _wait_until_empty(root / self.place / "cgroup.events")


def _wait_until_empty(events: Path) -> None:
    poll = select.poll()
    with events.open() as file:
        poll.register(file, select.POLLPRI)
        while "populated 1" in file.read():
            assert poll.poll(SAFETY_SECONDS * 1000), "the user's processes do not end"
            file.seek(0)
