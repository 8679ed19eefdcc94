"""What a log must never hold, and everything that was logged since a test began.

Agents in processes of their own, and logs in this one, are heard; `tests/conftest.py` looks after
each test whether there was a secret in it.
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
"""The value of an environment variable that everything has which tests start, containers too."""
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

# A test may have made thousands of keys and logged megabytes.
_BLOCK = 16

_heard: list[str] = []
_keys: list[PrivateKey] = []


def hear(text: str) -> None:
    """Something was logged."""
    _heard.append(text)


def know(key: PrivateKey) -> None:
    """Somebody made this key."""
    _keys.append(key)


def know_keys_below(directory: Path) -> None:
    """An agent keeps its keys here, in PEM within JSON."""
    for path in directory.rglob("*.json"):
        for pem in _PEM.findall(path.read_text().replace("\\n", "\n")):
            know(keys.load_pem(pem.encode()))


def forget() -> None:
    """Begin anew."""
    _heard.clear()
    _keys.clear()


def found() -> set[str]:
    """The secrets that were logged."""
    return secrets_in("\n".join(_heard))


def secrets_in(text: str) -> set[str]:
    """What in a text is secret."""
    secrets = {what for what, pattern in _PATTERNS.items() if pattern.search(text)}
    lower = text.lower()
    if any(form in lower for beginning in _BEGINNINGS for form in _forms(beginning)):
        secrets.add("a private key in DER")
    if _holds_any(lower, (form for key in _keys for form in _of_key(key))):
        secrets.add("the number that is a private key")
    return secrets


def _holds_any(text: str, forms: Iterable[str]) -> bool:
    """Whether one of many strings is in a long text.

    One that is covers a whole block of the text, wherever it begins, if it is two blocks long.
    """
    blocks = {text[at : at + _BLOCK] for at in range(0, len(text), _BLOCK)}

    def is_held(form: str) -> bool:
        assert len(form) >= 2 * _BLOCK, form
        parts = (form[at : at + _BLOCK] for at in range(_BLOCK))
        return not blocks.isdisjoint(parts) and form in text

    return any(map(is_held, forms))


def _forms(content: bytes) -> set[str]:
    """How bytes are written, in small letters. In base64 they may begin anywhere in three."""
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
