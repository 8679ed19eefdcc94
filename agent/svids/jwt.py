"""JWT-SVIDs by identity and audience: issued once, handed out until half of their lifetime is over.

The audience is a set: its order and its repetitions cause no other token, though a new token keeps
the order of the request. A token never outlives the key that signed it, and a token of a tainted
key is not handed out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cachetools import LRUCache

from agent.authority.jwt_issuer import JwtSvidRequest
from agent.errors import AuthorityError
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.spiffe import lifetimes
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from structlog.typing import FilteringBoundLogger

    from agent.authority.jwt_issuer import JwtSvid
    from agent.authority.signer import Signer
    from agent.clock import Clock
    from agent.entries.identity import Identity
    from agent.signals import Signals

# Tokens in memory, about 10 MiB. Callers choose audiences, so that the number needs a bound.
CACHE_SIZE = 10_000

_Key: TypeAlias = "tuple[Identity, tuple[str, ...]]"


class JwtSvids:
    """The JWT-SVIDs of all identities.

    Args:
        signer: the authority that issues the tokens.
        clock: wall time.
        default_ttl: lifetime of tokens whose entry gives none. A reload may change it.
        log: receives failed renewals.
        signals: receives the time that issuing takes.
        cache_size: the most tokens in memory; the least recently used make room.
    """

    def __init__(
        self,
        signer: Signer,
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
        self._issued: LRUCache[_Key, JwtSvid] = LRUCache(cache_size)

    def __len__(self) -> int:
        """How many tokens are in memory."""
        return len(self._issued)

    def get(self, identity: Identity, audience: Iterable[str]) -> JwtSvid:
        """A token of this identity for this audience.

        Raises:
            AuthorityError: there is no valid token and none can be issued now.
        """
        wanted = tuple(dict.fromkeys(audience))
        key = identity, tuple(sorted(wanted))
        now = self._clock.now()
        svid = self._issued.get(key)
        if svid is not None and self._is_fresh(svid, now):
            return svid
        try:
            with Stopwatch(self._signals, Stage.MINT_JWT):
                return self._issue(key, wanted)
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

    def _issue(self, key: _Key, audience: tuple[str, ...]) -> JwtSvid:
        identity = key[0]
        svid = self._issued[key] = self._signer.sign_jwt(
            JwtSvidRequest(
                spiffe_id=identity.spiffe_id,
                audience=audience,
                ttl=identity.jwt_svid_ttl or self.default_ttl,
                not_after_limit=identity.expires_at,
            )
        )
        return svid

    def _is_valid(self, svid: JwtSvid, now: datetime) -> bool:
        # After the clock was set back, a token from before would be issued in the future.
        return svid.issued_at <= now < svid.expires_at and self._signer.trusts(svid.kid)

    def _is_fresh(self, svid: JwtSvid, now: datetime) -> bool:
        renew_at = lifetimes.renewal(svid.issued_at, svid.expires_at)
        return self._is_valid(svid, now) and now < renew_at
