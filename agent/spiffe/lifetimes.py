"""How long authorities and SVIDs live, when they are replaced, and how far clocks may differ.

An SVID is renewed at half of its lifetime. An authority, whose lifetime the setting `x509_ca_ttl`
gives, passes four moments:

    begin                      1/2                    5/6           end         end + margin
      |--- the only authority ---|--- also signs -------|-- retired --|--- retired ---|
                       successor in the bundle   successor signs        leaves the bundle

* The successor is in the bundle for a third of the lifetime before it signs, so that each verifier
  has fetched the new bundle by then.
* An SVID lives at most a sixth of the authority's lifetime, which is the part that is left when the
  successor takes over. No SVID is therefore cut short by the end of its authority.
* A retired authority leaves the bundle when its last SVID has expired, and a margin later for
  verifiers with slow clocks.

All functions are pure: times come from the caller.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

# --- clocks that differ --------------------------------------------------------------------------

# Certificates begin this long before they are issued, because RFC 5280 section 6.1.3 gives a
# verifier no tolerance for a clock that is behind ours.
BACKDATE = timedelta(seconds=10)
# `exp` and `nbf` of a token hold give or take this much. JWT-SVID appendix A allows "a small
# leeway". It stays far below the usual minute: an expired token must not live on.
LEEWAY = timedelta(seconds=5)
# An authority that begins further in the future than this was made while our clock was wrong. Time
# daemons correct a clock by less, and smaller steps back must not replace an authority.
CLOCK_STEP = timedelta(minutes=1)
# A retired authority stays in the bundle for this much longer, for verifiers with a slow clock.
MARGIN = timedelta(hours=1)

# --- SVIDs ---------------------------------------------------------------------------------------

# The shortest lifetime of an SVID, and so of what is left of an authority that still signs. Times
# in certificates are whole seconds (RFC 5280 section 4.1.2.5) and renewal comes at half: an SVID of
# one second could expire before its successor exists.
MIN_LIFETIME = timedelta(seconds=2)


def renewal(begin: datetime, end: datetime, spread: float = 0.0) -> datetime:
    """When an SVID with this lifetime is renewed: half-way, or a tenth of that sooner or later.

    Args:
        begin: when the SVID was issued.
        end: when the SVID expires.
        spread: from -1 to 1, drawn once for each SVID, so that SVIDs that were issued together are
            not renewed together.
    """
    return begin + (end - begin) / 2 * (1 + spread / 10)


# --- authorities ---------------------------------------------------------------------------------

# The successor signs in the last 1/LAST_PART of a lifetime. No SVID lives longer than that part.
LAST_PART = 6
# A successor that is prepared late is in the bundle for at least this long before it signs, for
# verifiers on other hosts, who learn of a new bundle a little after the workloads of this host.
PROPAGATION = timedelta(seconds=10)


def longest_svid(authority_ttl: timedelta) -> timedelta:
    """The longest lifetime of an SVID of authorities with this lifetime: a sixth."""
    return authority_ttl / LAST_PART


def preparation(begin: datetime, end: datetime) -> datetime:
    """When an authority with this lifetime gets a successor: half-way."""
    return end - (end - begin) / 2


def handover(begin: datetime, end: datetime, successor_since: datetime) -> datetime:
    """When an authority with this lifetime lets its successor sign.

    A sixth before the end. After a late preparation, PROPAGATION later than that, but no later than
    the last moment at which the authority can sign.

    Args:
        begin: when the authority's lifetime begins.
        end: when the authority's lifetime ends.
        successor_since: when its successor came into the bundle.
    """
    last_part = (end - begin) / LAST_PART
    published = successor_since + min(PROPAGATION, last_part / 2)
    return min(max(end - last_part, published), end - MIN_LIFETIME)


def removal(begin: datetime, end: datetime, retired: datetime, svid: timedelta) -> datetime:
    """When an authority with this lifetime leaves the bundle.

    Args:
        begin: when the authority's lifetime begins.
        end: when the authority's lifetime ends.
        retired: when the authority signed for the last time.
        svid: the longest lifetime of anything it signed.
    """
    last_expiry = min(end, retired + svid)
    return last_expiry + min(MARGIN, (end - begin) / LAST_PART)
