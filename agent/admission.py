"""How much of the agent one user, one cgroup, and all together may have at a time.

Each is counted by itself: what a user has in one cgroup, what it has in all, and what all users of
one cgroup have. A container that runs away leaves the other half to the containers of the same
user; a user that runs away leaves the other half to the other users of its cgroup.

The cgroup is cut where it begins to be the affair of whoever runs there, who could otherwise have
as many as it likes. What is over a limit gets an error that asks to come again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Self, TypeAlias

from agent.errors import UnavailableError

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


class Kind(StrEnum):
    """What there may be too many of."""

    CONNECTIONS = "connections"
    STREAMS = "streams"
    ATTESTATIONS = "attestations"
    CALLS = "calls"


_WHOSE = {
    Scope.USER_IN_CGROUP: "this user in this cgroup",
    Scope.USER: "this user",
    Scope.CGROUP: "this cgroup",
    Scope.ALL: "all processes together",
}
REASONS = tuple(f"{kind}_of_{scope}" for kind in Kind for scope in Scope)
"""All words of OverLimitError.reason."""

Key: TypeAlias = tuple[Scope, int, str]


class OverLimitError(UnavailableError):
    """Somebody has its share already. `reason` is one of few words, for counting."""

    def __init__(self, what: Kind, scope: Scope) -> None:
        self.reason = f"{what}_of_{scope}"
        super().__init__(f"too many {what} of {_WHOSE[scope]}; try again later")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Place:
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


class Occupancy:
    """How many there may be at a time: `most` in all, `per_user` of one user or cgroup.

    Half of that of one user in one cgroup.
    """

    def __init__(self, what: Kind, *, most: int, per_user: int) -> None:
        self._what = what
        self._most = most
        self._share = {
            Scope.USER_IN_CGROUP: -(-per_user // 2),
            Scope.USER: per_user,
            Scope.CGROUP: per_user,
        }
        self._counts: dict[Key, int] = {}
        self._count = 0

    def enter(self, place: Place, number: int = 1) -> None:
        """Be one more, or so many.

        Raises:
            OverLimitError: there are enough; none of them has entered.
        """
        counts = {key: self._counts.get(key, 0) + number for key in place.keys}
        for key, count in counts.items():
            if count > self._share[key[0]]:
                raise OverLimitError(self._what, key[0])
        if self._count + number > self._most:
            raise OverLimitError(self._what, Scope.ALL)
        self._counts.update(counts)
        self._count += number

    def leave(self, place: Place, number: int = 1) -> None:
        """Be one less, or so many."""
        self._count -= number
        for key in place.keys:
            self._counts[key] -= number
            if not self._counts[key]:
                del self._counts[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many there may be, of all and of one user or cgroup."""

    connections: int
    connections_per_user: int
    streams: int
    streams_per_user: int
    attestations: int
    attestations_per_user: int


class Admission:
    """Admits connections, streams and attestations, and calls on top.

    A stream counts when the server has begun with it, and not before its request is complete. Calls
    count from their first byte, whatever they are for: there may be as many as streams and
    attestations together.
    """

    def __init__(self, limits: Limits) -> None:
        self._connections = Occupancy(
            Kind.CONNECTIONS, most=limits.connections, per_user=limits.connections_per_user
        )
        self._streams = Occupancy(
            Kind.STREAMS, most=limits.streams, per_user=limits.streams_per_user
        )
        self._attestations = Occupancy(
            Kind.ATTESTATIONS, most=limits.attestations, per_user=limits.attestations_per_user
        )
        self._calls = Occupancy(
            Kind.CALLS,
            most=limits.streams + limits.attestations,
            per_user=limits.streams_per_user + limits.attestations_per_user,
        )

    def connect(self, place: Place) -> None:
        """Let a connection in; `disconnect` at its end.

        Raises:
            OverLimitError: it is one too many.
        """
        self._connections.enter(place)

    def disconnect(self, place: Place) -> None:
        """The end of a connection that was let in."""
        self._connections.leave(place)

    def calls(self, place: Place, before: int, now: int) -> None:
        """On a connection of theirs there are so many calls under way now, and were before.

        Raises:
            OverLimitError: these are too many; those before still count.
        """
        if now > before:
            self._calls.enter(place, now - before)
        elif now < before:
            self._calls.leave(place, before - now)

    def stream(self, place: Place) -> Within:
        """Be a stream for the block.

        Raises:
            OverLimitError: it is one too many.
        """
        return Within(self._streams, place)

    def attestation(self, place: Place) -> Within:
        """Be attested for the block.

        Raises:
            OverLimitError: it is one too many.
        """
        return Within(self._attestations, place)


class Within:
    """Somebody within an occupancy, for the block or until they `leave` it."""

    __slots__ = ("_entered", "_occupancy", "_place")

    def __init__(self, occupancy: Occupancy, place: Place) -> None:
        self._occupancy = occupancy
        self._place = place
        self._entered = False

    def __enter__(self) -> Self:
        self._occupancy.enter(self._place)
        self._entered = True
        return self

    def __exit__(self, *_error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Before the end of the block; again is harmless."""
        if self._entered:
            self._entered = False
            self._occupancy.leave(self._place)
