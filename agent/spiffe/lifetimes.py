"""How long certificates, tokens and signing keys live."""

from __future__ import annotations

from datetime import timedelta

# For hosts whose clocks are a little behind ours.
BACKDATE = timedelta(seconds=10)
# SVIDs are renewed at half their life and times are whole seconds, so that a shorter one could
# expire before its successor is there. It happens only next to the end of an authority.
MIN_LIFE = timedelta(seconds=2)

# Of the life of an authority. SVIDs may live as long as this last part, so that one that is signed
# at its beginning is not cut short (the configuration holds SVIDs to a sixth of the authority).
LAST_PART = 6
# With less of its life left nothing can be signed (issuance.MIN_LIFE): nobody waits any longer.
LAST_MOMENT = timedelta(seconds=2)
# SVIDs are renewed at half of life, and certificates count in whole seconds.
MIN_SVID_TTL = timedelta(seconds=2)
