"""Find a process's container in the text of /proc/PID/cgroup (cgroups(7)).

The creator of a cgroup chooses its name. The name is evidence only if the host created every
directory above it: systemd's slices, and the directories of a runtime at the root. Therefore the
path is read from the root downwards, and the first container on the way is the process's. A process
inside a container, a service, a login session or a user's manager can create any directory below
its own cgroup: those names are no evidence. A `docker-ID.scope` below `user@1000.service` is a
claim of user 1000, and is reported as that user's.

mountinfo is not read: a process can mount what it likes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Engine(StrEnum):
    """The engine that created a container, by the name of its cgroup."""

    DOCKER = "docker"
    PODMAN = "podman"
    CONTAINERD = "containerd"
    CRIO = "cri-o"
    FARGATE = "fargate"
    UNKNOWN = ""


class CgroupError(ValueError):
    """The cgroup hierarchies of a process name different containers or pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container, by its cgroup.

    Raises:
        ValueError: the ID or the cgroup is missing.
    """

    id: str
    engine: Engine
    cgroups: frozenset[tuple[str, str]]
    """Its own cgroups: hierarchy (the controllers; empty for version 2) and path."""
    pod_uid: str = ""
    """The UID of its pod, with dashes; empty if the path names none."""
    owner_uid: int | None = None
    """The user whose manager is above it: its processes can create any name there. None: root's."""

    def __post_init__(self) -> None:
        if not self.id or not self.cgroups:
            raise ValueError("a container has an ID and a cgroup")

    def is_same(self, other: Container | None) -> bool:
        """Return whether both have the same path in every hierarchy that both name."""
        if other is None or self.id != other.id:
            return False
        mine, theirs = dict(self.cgroups), dict(other.cgroups)
        common = mine.keys() & theirs.keys()
        return bool(common) and all(mine[name] == theirs[name] for name in common)


@dataclass(frozen=True, slots=True)
class Located:
    """The container of a process, if it is in one; `notes` quote the lines of unknown format."""

    container: Container | None = None
    notes: tuple[str, ...] = ()


_ID = "[0-9a-f]{64}"
# Names of containers. The prefix is the runtime's. `conmon`, which monitors a container, is none.
_CONTAINER = re.compile(
    rf"""(?: (?P<prefix> docker | libpod | libpod-payload | crio | cri-containerd | nerdctl ) - )?
         (?P<id> {_ID} ) (?: \.scope )?""",
    re.VERBOSE,
)
# containerd with the cgroupfs driver under a kubelet with the systemd driver: parent:prefix:id.
_COLONS = re.compile(rf"(?P<parent>[^:]+):(?P<prefix>cri-containerd|crio|docker):(?P<id>{_ID})")
_FARGATE = re.compile(r"[0-9a-f]{32}-[0-9]+")
_FARGATE_TASK = re.compile(r"[0-9a-f]{32}")
# A static pod has the hash of its file in place of a UID of the API server.
_POD = re.compile(
    r"""(?P<root> [a-z-]* kubepods (?: -besteffort | -burstable | -guaranteed )? - )?
        pod (?P<uid> [0-9a-f]{8} (?: [-_][0-9a-f]{4} ){3} [-_][0-9a-f]{12} | [0-9a-f]{32} )
        (?: \.slice )?""",
    re.VERBOSE,
)
_KUBEPODS = re.compile(r"([a-z-]*-)?kubepods(-[a-z]+)?(\.slice)?")
# The directories above a pod: the kubelet and systemd create no others. An unknown runtime may let
# its containers choose the names below a directory of another name.
_ABOVE_PODS = re.compile(
    r"\.\. | .*\.slice | kubelet | kubepods | besteffort | burstable | guaranteed", re.VERBOSE
)
_USER_MANAGER = re.compile(r"user@([0-9]{1,10})\.service")
# The processes in these cgroups can create the directories below.
_DELEGATED = re.compile(r".*\.(service|scope)|lxc|lxc\..*|user", re.DOTALL)
# Podman under systemd (quadlets, --cgroups=split) creates the container directly below its unit.
_SPLIT = re.compile(rf"libpod-payload-{_ID}")
# Services of root below which only the runtime creates directories.
_RUNTIME_SERVICES = frozenset(
    f"{name}.service"
    for name in ("containerd", "crio", "docker", "k3s", "k3s-agent", "rke2-agent", "rke2-server")
)
_ENGINES = {
    "docker": Engine.DOCKER,
    "libpod": Engine.PODMAN,
    "libpod-payload": Engine.PODMAN,
    "crio": Engine.CRIO,
    "cri-containerd": Engine.CONTAINERD,
    "nerdctl": Engine.CONTAINERD,
}
_PARENTS = {"docker": Engine.DOCKER, "libpod": Engine.PODMAN}


def locate(cgroup: bytes, own: bytes = b"") -> Located:
    """Find the container of a process in its /proc/PID/cgroup; `own` is the agent's.

    It is the outermost container that does not contain the agent too: an agent in a node that is a
    container tells the containers of that node apart. If all of them contain the agent, it is the
    innermost. A line without a container counts for nothing, as on hybrid hosts.

    Raises:
        CgroupError: hierarchies name different containers, or different pods.
    """
    lines, notes = _parse(cgroup)
    agents, _notes = _parse(own)
    theirs, shared = [], []
    for hierarchy, path in lines.items():
        around, within = _around_and_within(hierarchy, path, agents.get(hierarchy, "/"))
        theirs += within[:1]
        shared += around[-1:]
    found = theirs or shared
    return Located(_merge(found) if found else None, notes)


def _parse(text: bytes) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the paths by hierarchy, and notes on the lines of unknown format."""
    paths: dict[str, str] = {}
    notes = []
    # The kernel refuses \n in the name of a cgroup; str.splitlines would split at other characters.
    for line in text.decode(errors="surrogateescape").split("\n"):
        if not line:
            continue
        number, _, rest = line.partition(":")
        hierarchy, colon, path = rest.partition(":")
        if number.isdecimal() and colon and path.startswith("/"):
            paths[hierarchy] = path
        else:
            notes.append(f"line of /proc/PID/cgroup skipped: {line[:200]!r}")
    return paths, tuple(notes)


def _around_and_within(
    hierarchy: str, path: str, own: str
) -> tuple[list[Container], list[Container]]:
    """Return the containers of a path, outermost first: those around the agent, and the others."""
    every = list(_containers(hierarchy, path))
    around = [each for each in every if f"{own}/".startswith(f"{dict(each.cgroups)[hierarchy]}/")]
    return around, every[len(around) :]


def _merge(found: Sequence[Container]) -> Container:
    ids = sorted({each.id for each in found})
    if len(ids) > 1 or len({each.owner_uid for each in found}) > 1:
        raise CgroupError(f"its cgroups name different containers: {', '.join(ids)}")
    pods = sorted({each.pod_uid for each in found} - {""})
    if len(pods) > 1:
        raise CgroupError(f"its cgroups name different pods: {', '.join(pods)}")
    return Container(
        id=ids[0],
        engine=max((each.engine for each in found), key=bool),
        cgroups=frozenset().union(*(each.cgroups for each in found)),
        pod_uid="".join(pods),
        owner_uid=found[0].owner_uid,
    )


# --- one path -----------------------------------------------------------------------------------


def _containers(hierarchy: str, path: str) -> Iterator[Container]:
    """Yield the containers from the root to the process, outermost first.

    The second and all further ones are claims of a process in the first.
    """
    segments = path.strip("/").split("/")
    owner: int | None = None
    above: list[str] = []
    for segment in segments:
        part = _read(above, segment)
        if part is not None:
            place = "/" + "/".join([*above, segment])
            yield Container(
                id=part["id"],
                engine=_engine(part, above),
                cgroups=frozenset({(hierarchy, place)}),
                pod_uid=part.get("pod", ""),
                owner_uid=owner,
            )
        elif user := _USER_MANAGER.fullmatch(segment):
            owner = int(user[1]) if owner is None else owner
        elif _is_end(above, segment, owner, segments[len(above) + 1 :]):
            return
        above.append(segment)


def _read(above: Sequence[str], segment: str) -> Mapping[str, str] | None:
    """Parse a segment; None if it is not a container's."""
    parent = above[-1] if above else ""
    if match := _COLONS.fullmatch(segment):
        return {**match.groupdict(), "pod": _pod(above, match["parent"])}
    if parent and _FARGATE_TASK.fullmatch(parent) and "ecs" in above[-2:-1]:
        return {"id": segment, "prefix": ""} if _FARGATE.fullmatch(segment) else _plain(segment)
    if "libpod_parent" in above and not segment.startswith("libpod-"):
        return None  # the ID of a Podman pod has the form of a container's
    return {**plain, "pod": _pod(above[:-1], parent)} if (plain := _plain(segment)) else None


def _plain(segment: str) -> dict[str, str] | None:
    match = _CONTAINER.fullmatch(segment)
    return {"id": match["id"], "prefix": match["prefix"] or ""} if match else None


def _pod(above: Sequence[str], segment: str) -> str:
    """Return the pod's UID if this segment is a pod's cgroup in the kubelet's tree."""
    match = _POD.fullmatch(segment)
    above = _below_last_container(above)
    if match is None or not all(map(_is_above_pods, above)):
        return ""
    hidden = above[:1] == [".."]
    if match["root"] or hidden or any(_KUBEPODS.fullmatch(each) for each in above):
        return match["uid"].replace("_", "-")
    return ""


def _is_above_pods(segment: str) -> bool:
    return segment in _RUNTIME_SERVICES or bool(_ABOVE_PODS.fullmatch(segment))


def _below_last_container(above: Sequence[str]) -> list[str]:
    """Return the part of a path below the innermost container, such as a node in a container."""
    inside = [number for number, each in enumerate(above, 1) if _CONTAINER.fullmatch(each)]
    return list(above[inside[-1] if inside else 0 :])


def _engine(part: Mapping[str, str], above: Sequence[str]) -> Engine:
    if _FARGATE.fullmatch(part["id"]):
        return Engine.FARGATE
    parent = above[-1] if above else ""
    return _ENGINES.get(part["prefix"], _PARENTS.get(parent, Engine.UNKNOWN))


def _is_end(above: Sequence[str], segment: str, owner: int | None, below: Sequence[str]) -> bool:
    """Return whether neither the host nor a runtime creates the directories below this segment."""
    if not _DELEGATED.fullmatch(segment):
        return False
    if owner is None and list(above[-1:]) == ["system.slice"] and segment in _RUNTIME_SERVICES:
        return False
    return not (segment.endswith(".service") and below and _SPLIT.fullmatch(below[0]))
