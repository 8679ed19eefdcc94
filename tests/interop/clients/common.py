"""What the client programs share: how they report.

What each command prints is told in tests/interop/foreign.py.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.hashes import SHA256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cryptography import x509

WRONG_AUDIENCE = "somebody-else"


def report(what: object) -> None:
    """Print one line of JSON, at once."""
    json.dump(what, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()


def fingerprints(certificates: Iterable[x509.Certificate]) -> list[str]:
    """The SHA-256 of each, sorted."""
    return sorted(certificate.fingerprint(SHA256()).hex() for certificate in certificates)


def refusal(call: Callable[[], Any]) -> str:
    """The text of the error that a call ends with; empty if it succeeds."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its user's error
        return f"{type(error).__name__}: {error}"
    return ""
