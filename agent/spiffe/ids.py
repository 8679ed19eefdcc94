"""SPIFFE IDs and trust domains: parse, validate, print (SPIFFE-ID standard).

An instance is always valid. Upper case in a trust domain is refused (section 2.1), not folded: the
text that an operator writes appears byte for byte in certificates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

SCHEME = "spiffe://"
# SPIFFE-ID section 2.3.
MAX_ID_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+)+")


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """The name of a trust domain, such as `example.org`.

    Raises:
        ValueError: the name breaks SPIFFE-ID section 2.1, or has an empty label. The standard
            allows empty labels, but Go's certificate parser refuses them.
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("trust domain is empty")
        if len(self.name) > MAX_TRUST_DOMAIN_BYTES:
            raise ValueError(f"trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise ValueError(f"trust domain {self.name!r} may hold only a-z, 0-9, '.', '_' and '-'")
        if "" in self.name.split("."):
            raise ValueError(f"trust domain {self.name!r} has an empty label (a stray dot)")

    @property
    def id(self) -> str:
        """`spiffe://name`, without a trailing slash: the key of every bundle map."""
        return SCHEME + self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A workload's SPIFFE ID: a trust domain and a path that is not empty.

    Raises:
        ValueError: the path breaks SPIFFE-ID section 2.2, or the whole is over 2048 bytes.
    """

    trust_domain: TrustDomain
    path: str

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise ValueError(_path_problem(self.path))
        if len(SCHEME) + len(self.trust_domain.name) + len(self.path) > MAX_ID_BYTES:
            raise ValueError(f"SPIFFE ID is longer than {MAX_ID_BYTES} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a full `spiffe://trust-domain/path`.

        Raises:
            ValueError: it is not the SPIFFE ID of a workload.
        """
        # The scheme compares case-insensitively when reading (SPIFFE-ID section 2.4).
        if text[: len(SCHEME)].lower() != SCHEME:
            raise ValueError(f"{text!r} does not begin with {SCHEME}")
        name, slash, path = text[len(SCHEME) :].partition("/")
        return cls(TrustDomain(name), slash + path)

    def __str__(self) -> str:
        return self.trust_domain.id + self.path


def _path_problem(path: str) -> str:
    if not path:
        return "the SPIFFE ID has no path, so that it names a trust domain and not a workload"
    if not path.startswith("/"):
        return f"path {path!r} does not begin with '/'"
    segments = path[1:].split("/")
    if "" in segments:
        return f"path {path!r} has an empty segment or a trailing '/'"
    if dots := {".", ".."}.intersection(segments):
        return f"path {path!r} has a '{min(dots)}' segment"
    segment = next(each for each in segments if not _SEGMENT.fullmatch(each))
    return f"path segment {segment!r} may hold only a-z, A-Z, 0-9, '.', '_' and '-'"
