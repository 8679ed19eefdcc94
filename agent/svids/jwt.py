"""JWT-SVIDs by identity and audience: made once, handed out while half of their life is left.

The audience is a set: its order and its repetitions make no other token, though a new one keeps the
order of whoever asked (IC-22). A token never outlives the
key that signed it, and none of a tainted key is handed out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cachetools import LRUCache

from agent.authority.jwt_issuer import JwtSvidRequest
from agent.errors import AuthorityError
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from structlog.typing import FilteringBoundLogger

    from agent.authority.jwt_issuer import JwtSvid
    from agent.authority.signer import JwtSigner
    from agent.clock import Clock
    from agent.entries.identity import Identity
    from agent.signals import Signals

# Some 10 MiB. Callers choose audiences, so that there must be an end to it.
CACHE_SIZE = 10_000

_Key: TypeAlias = "tuple[Identity, tuple[str, ...]]"


class JwtSvids:
    """The JWT-SVIDs of all identities. `default_ttl` may be changed."""

    def __init__(
        self,
        signer: JwtSigner,
        clock: Clock,
        default_ttl: timedelta,
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        self.default_ttl = default_ttl
        self._signer = signer
        self._clock = clock
        self._throttled = ThrottledLog(log)
        self._signals = signals
        self._made: LRUCache[_Key, JwtSvid] = LRUCache(cache_size)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._made)

    def get(self, identity: Identity, audience: Iterable[str]) -> JwtSvid:
        """A token of this identity for this audience.

        Raises:
            AuthorityError: there is no valid one and none can be made now.
        """
        wanted = tuple(dict.fromkeys(audience))
        key = identity, tuple(sorted(wanted))
        now = self._clock.now()
        svid = self._made.get(key)
        if svid is not None and self._is_fresh(svid, now):
            return svid
        try:
            with Stopwatch(self._signals, Stage.MINT_JWT):
                return self._make(key, wanted)
        except AuthorityError as error:
            if svid is None or not self._is_valid(svid, now):
                raise
            self._throttled.warning(
                "svid not renewed",
                identity.entry_id,
                entry_id=identity.entry_id,
                reason=str(error),
            )
            return svid

    def _make(self, key: _Key, audience: tuple[str, ...]) -> JwtSvid:
        identity = key[0]
        svid = self._made[key] = self._signer.sign_jwt(
            JwtSvidRequest(
                spiffe_id=identity.spiffe_id,
                audience=audience,
                ttl=identity.jwt_svid_ttl or self.default_ttl,
                not_after_limit=identity.expires_at,
            )
        )
        return svid

    def _is_valid(self, svid: JwtSvid, now: datetime) -> bool:
        # Of a clock that was set back, this one would have been issued in the future.
        return svid.issued_at <= now < svid.expires_at and self._signer.trusts(svid.kid)

    def _is_fresh(self, svid: JwtSvid, now: datetime) -> bool:
        half = (svid.expires_at - svid.issued_at) / 2
        return self._is_valid(svid, now) and now < svid.issued_at + half
