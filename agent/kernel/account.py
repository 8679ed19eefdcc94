"""The account that a caller's use is counted against: its user and its cgroup."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TypeAlias

# The cgroup of an account ends here: a unit of systemd, the slice of a user, a container. Below,
# the processes inside may make cgroups themselves, as many as they like.
_END = re.compile(
    r".*\.(service|scope)|user-[0-9]+\.slice|[0-9a-f]{64}|lxc\.payload\..*", re.DOTALL
)
# The cgroup of an LXC container has any name, below one of these.
_LXC = frozenset({"lxc", "lxc.payload"})


class Scope(StrEnum):
    """The set of callers that one share is for."""

    USER_IN_CGROUP = "user_in_cgroup"
    USER = "user"
    CGROUP = "cgroup"
    ALL = "all"


Key: TypeAlias = tuple[Scope, int, str]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Account:
    """A user in a cgroup. The cgroup is empty for a process in the root cgroup."""

    uid: int
    cgroup: str
    keys: tuple[Key, ...] = field(init=False, repr=False, compare=False)
    """The shares that the account counts against, the smallest first."""

    def __post_init__(self) -> None:
        keys: tuple[Key, ...] = (
            (Scope.USER_IN_CGROUP, self.uid, self.cgroup),
            (Scope.USER, self.uid, ""),
        )
        if self.cgroup:
            keys += ((Scope.CGROUP, -1, self.cgroup),)
        object.__setattr__(self, "keys", keys)


# Most connections come from a cgroup that is cached.
@lru_cache(maxsize=256)
def cgroup_of(text: bytes) -> str:
    """Find the cgroup of an account in the content of /proc/PID/cgroup (cgroups(7)).

    Returns:
        The path down to the unit, user slice or container; empty for the root cgroup.
    """
    paths = {}
    for line in text.decode(errors="surrogateescape").split("\n"):
        match line.split(":", 2):
            case [_number, hierarchy, path]:
                paths[hierarchy] = path.strip("/")
            case _:
                pass  # the empty line at the end
    # cgroup v2, else the hierarchy in which systemd keeps its units.
    path = paths.get("") or paths.get("name=systemd") or max(paths.values(), default="")
    kept = []
    for name in path.split("/"):
        kept.append(name)
        if _END.fullmatch(name) or _LXC.intersection(kept[-2:-1]):
            break
    return "/".join(kept)
