"""The account that a caller's use is counted against: its user and its cgroup."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TypeAlias

# Below a unit of systemd's, a user's slice, and a container, those who run there make cgroups.
_END = re.compile(
    r".*\.(service|scope)|user-[0-9]+\.slice|[0-9a-f]{64}|lxc\.payload\..*", re.DOTALL
)
# LXC's containers have names that somebody chose, below one of these.
_LXC = frozenset({"lxc", "lxc.payload"})


class Scope(StrEnum):
    """Whose share is meant."""

    USER_IN_CGROUP = "user_in_cgroup"
    USER = "user"
    CGROUP = "cgroup"
    ALL = "all"


Key: TypeAlias = tuple[Scope, int, str]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Account:
    """Whom something is put down to. No cgroup: it is in none of its own."""

    uid: int
    cgroup: str
    keys: tuple[Key, ...] = field(init=False, repr=False, compare=False)
    """Whose shares it counts against, the smallest first."""

    def __post_init__(self) -> None:
        keys: tuple[Key, ...] = (
            (Scope.USER_IN_CGROUP, self.uid, self.cgroup),
            (Scope.USER, self.uid, ""),
        )
        if self.cgroup:
            keys += ((Scope.CGROUP, -1, self.cgroup),)
        object.__setattr__(self, "keys", keys)


# Of most processes that connect it is known already.
@lru_cache(maxsize=256)
def cgroup_of(text: bytes) -> str:
    """Whose cgroup it is, by the text of /proc/PID/cgroup (cgroups(7)); empty at the root."""
    paths = {}
    for line in text.decode(errors="surrogateescape").split("\n"):
        match line.split(":", 2):
            case [_number, hierarchy, path]:
                paths[hierarchy] = path.strip("/")
            case _:
                pass  # the end of the text
    # The unified hierarchy; on older hosts that in which systemd keeps its units.
    path = paths.get("") or paths.get("name=systemd") or max(paths.values(), default="")
    kept = []
    for name in path.split("/"):
        kept.append(name)
        if _END.fullmatch(name) or _LXC.intersection(kept[-2:-1]):
            break
    return "/".join(kept)
