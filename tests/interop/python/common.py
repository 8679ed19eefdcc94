"""Output helpers of the client programs in Python.

tests/interop/foreign.py describes the output of each command.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.hashes import SHA256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cryptography import x509

WRONG_AUDIENCE = "other-audience"


def report(what: object) -> None:
    """Print one line of JSON and flush."""
    json.dump(what, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()


def fingerprints(certificates: Iterable[x509.Certificate]) -> list[str]:
    """Return the SHA-256 fingerprints of certificates, sorted."""
    return sorted(certificate.fingerprint(SHA256()).hex() for certificate in certificates)


def refusal(call: Callable[[], Any]) -> str:
    """Call and return the text of its error; empty for success."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the library may raise any type
        return f"{type(error).__name__}: {error}"
    return ""
