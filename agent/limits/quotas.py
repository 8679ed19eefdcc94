"""How much of the agent one user, one cgroup, and all together may have at a time.

Each is counted by itself: what a user has in one cgroup, what it has in all, and what all users of
one cgroup have. A container that runs away leaves the other half to the containers of the same
user; a user that runs away leaves the other half to the other users of its cgroup.

The cgroup is cut where it begins to be the affair of whoever runs there, who could otherwise have
as many as it likes. What is over a limit gets an error that asks to come again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from agent.errors import UnavailableError
from agent.kernel.account import Account, Key, Scope


class Resource(StrEnum):
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
REASONS = tuple(f"{kind}_of_{scope}" for kind in Resource for scope in Scope)
"""All words of OverLimitError.reason."""


class OverLimitError(UnavailableError):
    """Somebody has its share already. `reason` is one of few words, for counting."""

    def __init__(self, what: Resource, scope: Scope) -> None:
        self.reason = f"{what}_of_{scope}"
        super().__init__(f"too many {what} of {_WHOSE[scope]}; try again later")


class Quota:
    """How many there may be at a time: `most` in all, `per_user` of one user or cgroup.

    Half of that of one user in one cgroup.
    """

    def __init__(self, what: Resource, *, most: int, per_user: int) -> None:
        self._what = what
        self._most = most
        self._share = {
            Scope.USER_IN_CGROUP: -(-per_user // 2),
            Scope.USER: per_user,
            Scope.CGROUP: per_user,
        }
        self._counts: dict[Key, int] = {}
        self._count = 0

    def enter(self, account: Account, number: int = 1) -> None:
        """Be one more, or so many.

        Raises:
            OverLimitError: there are enough; none of them has entered.
        """
        counts = {key: self._counts.get(key, 0) + number for key in account.keys}
        for key, count in counts.items():
            if count > self._share[key[0]]:
                raise OverLimitError(self._what, key[0])
        if self._count + number > self._most:
            raise OverLimitError(self._what, Scope.ALL)
        self._counts.update(counts)
        self._count += number

    def leave(self, account: Account, number: int = 1) -> None:
        """Be one less, or so many."""
        self._count -= number
        for key in account.keys:
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


class Quotas:
    """Admits connections, streams and attestations, and calls on top.

    A stream counts when the server has begun with it, and not before its request is complete. Calls
    count from their first byte, whatever they are for: there may be as many as streams and
    attestations together.
    """

    def __init__(self, limits: Limits) -> None:
        self._connections = Quota(
            Resource.CONNECTIONS, most=limits.connections, per_user=limits.connections_per_user
        )
        self._streams = Quota(
            Resource.STREAMS, most=limits.streams, per_user=limits.streams_per_user
        )
        self._attestations = Quota(
            Resource.ATTESTATIONS, most=limits.attestations, per_user=limits.attestations_per_user
        )
        self._calls = Quota(
            Resource.CALLS,
            most=limits.streams + limits.attestations,
            per_user=limits.streams_per_user + limits.attestations_per_user,
        )

    def connect(self, account: Account) -> None:
        """Let a connection in; `disconnect` at its end.

        Raises:
            OverLimitError: it is one too many.
        """
        self._connections.enter(account)

    def disconnect(self, account: Account) -> None:
        """The end of a connection that was let in."""
        self._connections.leave(account)

    def calls(self, account: Account, before: int, now: int) -> None:
        """On a connection of theirs there are so many calls under way now, and were before.

        Raises:
            OverLimitError: these are too many; those before still count.
        """
        if now > before:
            self._calls.enter(account, now - before)
        elif now < before:
            self._calls.leave(account, before - now)

    def stream(self, account: Account) -> Slot:
        """Be a stream for the block.

        Raises:
            OverLimitError: it is one too many.
        """
        return Slot(self._streams, account)

    def attestation(self, account: Account) -> Slot:
        """Be attested for the block.

        Raises:
            OverLimitError: it is one too many.
        """
        return Slot(self._attestations, account)


class Slot:
    """Somebody within an occupancy, for the block or until they `leave` it."""

    __slots__ = ("_account", "_entered", "_quota")

    def __init__(self, quota: Quota, account: Account) -> None:
        self._quota = quota
        self._account = account
        self._entered = False

    def __enter__(self) -> Self:
        self._quota.enter(self._account)
        self._entered = True
        return self

    def __exit__(self, *_error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Before the end of the block; again is harmless."""
        if self._entered:
            self._entered = False
            self._quota.leave(self._account)
