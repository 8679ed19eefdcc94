"""A search of logs for secrets: private keys, JWTs and values of environment variables.

Agents in other processes and logs in this process record their lines here. A fixture in
`tests/conftest.py` fails a test with a secret in its log.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from agent.spiffe import keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.spiffe.keys import PrivateKey

CANARY = "canary-5e1f9c0b7d"
"""The value of CANARY_VARIABLE in each process that tests start, containers included."""
CANARY_VARIABLE = "VOUCHD_TEST_CANARY"

# PKCS#8 of a P-256, P-384 or RSA key, from the algorithm on (RFC 5958 section 2).
_BEGINNINGS = tuple(
    map(
        bytes.fromhex,
        (
            "020100301306072a8648ce3d020106082a8648ce3d030107",
            "020100301006072a8648ce3d020106052b81040022",
            "020100300d06092a864886f70d0101010500",
        ),
    )
)
_PATTERNS = {
    "a private key in PEM": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a JWT": re.compile(r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),
    "the value of an environment variable": re.compile(CANARY),
}

_PEM = re.compile("-----BEGIN PRIVATE KEY-----[^-]+-----END PRIVATE KEY-----")

# Characters. The search is by blocks, since a test may make thousands of keys and log megabytes.
_BLOCK = 16

_recorded: list[str] = []
_keys: list[PrivateKey] = []


def record(text: str) -> None:
    """Record logged text."""
    _recorded.append(text)


def add_key(key: PrivateKey) -> None:
    """Search for this key too."""
    _keys.append(key)


def add_keys_below(directory: Path) -> None:
    """Search for the keys of an agent's data directory too: PEM within JSON."""
    for path in directory.rglob("*.json"):
        for pem in _PEM.findall(path.read_text().replace("\\n", "\n")):
            add_key(keys.load_pem(pem.encode()))


def reset() -> None:
    """Remove all recorded text and all keys."""
    _recorded.clear()
    _keys.clear()


def found() -> set[str]:
    """Return the kinds of secrets in the recorded text."""
    return secrets_in("\n".join(_recorded))


def secrets_in(text: str) -> set[str]:
    """Return the kinds of secrets in a text."""
    secrets = {what for what, pattern in _PATTERNS.items() if pattern.search(text)}
    lower = text.lower()
    if any(form in lower for beginning in _BEGINNINGS for form in _forms(beginning)):
        secrets.add("a private key in DER")
    if _holds_any(lower, (form for key in _keys for form in _of_key(key))):
        secrets.add("the number that is a private key")
    return secrets


def _holds_any(text: str, forms: Iterable[str]) -> bool:
    """Return whether one of many strings is in a long text.

    A string of two blocks or more covers a whole block of the text, at any offset.
    """
    blocks = {text[at : at + _BLOCK] for at in range(0, len(text), _BLOCK)}

    def is_held(form: str) -> bool:
        assert len(form) >= 2 * _BLOCK, form
        parts = (form[at : at + _BLOCK] for at in range(_BLOCK))
        return not blocks.isdisjoint(parts) and form in text

    return any(map(is_held, forms))


def _forms(content: bytes) -> set[str]:
    """Return the text forms of bytes, in lower case; base64 for each of the three offsets."""
    in_base64 = (
        encode(bytes(shift) + content)[4 if shift else 0 : -4]
        for encode in (base64.b64encode, base64.urlsafe_b64encode)
        for shift in range(3)
    )
    return {
        content.hex(),
        content.hex(" "),
        content.hex(":"),
        repr(content)[2:-1].lower(),
        *(each.decode().lower() for each in in_base64),
    }


def _of_key(key: PrivateKey) -> set[str]:
    if not isinstance(key, EllipticCurvePrivateKey):
        return {str(key.private_numbers().d)}
    number = key.private_numbers().private_value
    return {str(number), *_forms(number.to_bytes(key.key_size // 8, "big"))}


os.environ[CANARY_VARIABLE] = CANARY
