"""Quotas: the connections, streams, attestations, calls and bytes of an account at a time.

Each quota counts a user in one cgroup, a user in all cgroups, all users of one cgroup, and all
together. A runaway container leaves half of its user's quota to the user's other containers. A
runaway user leaves half of its cgroup's quota to the other users of that cgroup.

The cgroup is cut at the unit, user slice or container (agent.kernel.account): below, a process
could make as many cgroups as it likes. Over a quota the caller gets an error that asks it to try
again.

`agent.gate.admission` checks the quota of connections, `agent.transport.connection` those of calls
and bytes, `agent.api.guard` those of streams and attestations.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from agent.errors import UnavailableError
from agent.kernel.account import Account, Key, Scope


class Resource(StrEnum):
    """A thing that a quota bounds."""

    CONNECTIONS = "connections"
    STREAMS = "streams"
    ATTESTATIONS = "attestations"
    CALLS = "calls"
    BUFFER_BYTES = "buffer_bytes"
    """Bytes that the agent holds for clients: parts of requests, responses not yet taken."""


_NAMES = {each: each.value for each in Resource} | {
    Resource.BUFFER_BYTES: "bytes of unfinished requests and unread responses"
}
_OF = {
    Scope.USER_IN_CGROUP: "this user in this cgroup",
    Scope.USER: "this user",
    Scope.CGROUP: "this cgroup",
    Scope.ALL: "all processes together",
}
REASONS = tuple(f"{kind}_of_{scope}" for kind in Resource for scope in Scope)
"""All values of OverLimitError.reason."""


class OverLimitError(UnavailableError):
    """A quota is exhausted. `reason` is one of REASONS, for the metrics."""

    def __init__(self, what: Resource, scope: Scope) -> None:
        self.reason = f"{what}_of_{scope}"
        super().__init__(f"too many {_NAMES[what]} of {_OF[scope]}; try again later")


class Quota:
    """A bound on one resource: `most` in all, `per_user` for one user or one cgroup.

    One user in one cgroup may have half of `per_user`.
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

    def acquire(self, account: Account, number: int = 1) -> None:
        """Count so many more for this account.

        Raises:
            OverLimitError: a share is exhausted; then none is counted.
        """
        counts, share = self._counts, self._share
        for key in account.keys:
            if counts.get(key, 0) + number > share[key[0]]:
                raise OverLimitError(self._what, key[0])
        if self._count + number > self._most:
            raise OverLimitError(self._what, Scope.ALL)
        for key in account.keys:
            counts[key] = counts.get(key, 0) + number
        self._count += number

    def release(self, account: Account, number: int = 1) -> None:
        """Count so many less for this account."""
        self._count -= number
        for key in account.keys:
            self._counts[key] -= number
            if not self._counts[key]:
                del self._counts[key]

    def change(self, account: Account, before: int, now: int) -> None:
        """Count `now` instead of `before` for a part of this account.

        Raises:
            OverLimitError: a share is exhausted; then `before` still counts.
        """
        if now > before:
            self.acquire(account, now - before)
        elif now < before:
            self.release(account, before - now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The sizes of the quotas: in all, and for one user or cgroup."""

    connections: int
    connections_per_user: int
    streams: int
    streams_per_user: int
    attestations: int
    attestations_per_user: int
    buffer_bytes: int
    buffer_bytes_per_user: int


class Quotas:
    """The quotas of connections, streams, attestations, calls and bytes.

    A stream counts from the moment when its handler begins with the complete request. A call counts
    from its header block until its handler has ended, whatever its method: there may be as many
    calls as streams and attestations together.
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
        self._buffer_bytes = Quota(
            Resource.BUFFER_BYTES, most=limits.buffer_bytes, per_user=limits.buffer_bytes_per_user
        )

    def connect(self, account: Account) -> None:
        """Count a connection; `disconnect` at its end.

        Raises:
            OverLimitError: the quota is exhausted.
        """
        self._connections.acquire(account)

    def disconnect(self, account: Account) -> None:
        """Release a connection that was counted."""
        self._connections.release(account)

    def calls(self, account: Account, before: int, now: int) -> None:
        """Change the number of open calls of one connection.

        Raises:
            OverLimitError: the quota is exhausted; then `before` still counts.
        """
        self._calls.change(account, before, now)

    def buffer_bytes(self, account: Account, before: int, now: int) -> None:
        """Change the number of bytes held for one connection.

        Raises:
            OverLimitError: the quota is exhausted; then `before` still counts.
        """
        self._buffer_bytes.change(account, before, now)

    def stream(self, account: Account) -> Slot:
        """Count a stream while the block runs.

        Raises:
            OverLimitError: the quota is exhausted.
        """
        return Slot(self._streams, account)

    def attestation(self, account: Account) -> Slot:
        """Count an attestation while the block runs.

        Raises:
            OverLimitError: the quota is exhausted.
        """
        return Slot(self._attestations, account)


class Slot:
    """A unit of a quota, held while a block runs or until `release`."""

    __slots__ = ("_account", "_held", "_quota")

    def __init__(self, quota: Quota, account: Account) -> None:
        self._quota = quota
        self._account = account
        self._held = False

    def __enter__(self) -> Self:
        self._quota.acquire(self._account)
        self._held = True
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def release(self) -> None:
        """Release it before the end of the block. A second call has no effect."""
        if self._held:
            self._held = False
            self._quota.release(self._account)
