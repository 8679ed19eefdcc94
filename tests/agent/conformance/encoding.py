"""Parts of tokens in compact serialization (RFC 7515)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any


def base64url(data: bytes) -> str:
    """Encode without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encode(members: Mapping[str, Any]) -> str:
    """Encode a JSON object as a part of a token."""
    return base64url(json.dumps(members).encode())
