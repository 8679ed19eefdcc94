"""Write fetched SVIDs to PEM files, for programs without a Workload API client.

Each file is created under a temporary name with its final mode and then renamed: a reader sees the
old content or the new one, and no other user can ever read a key.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from agent.errors import VouchdError
from agent.spiffe import keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cryptography import x509

    from agent.cli.verify import VerifiedUpdate

_PRIVATE = 0o600
_PUBLIC = 0o644


class StoreError(VouchdError):
    """An SVID cannot be written to files."""


def write_update(update: VerifiedUpdate, directory: Path) -> list[Path]:
    """Write all SVIDs, keys and bundles, numbered in their order; return the paths.

    Raises:
        StoreError: the directory cannot be created or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [_write(directory / name, content, mode) for name, content, mode in _files(update)]
    except OSError as error:
        raise StoreError(
            f"cannot write to {directory}: {error.strerror or error}; choose another directory, or"
            " run as a user who may write there"
        ) from error


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return certificates in PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _files(update: VerifiedUpdate) -> Iterator[tuple[str, bytes, int]]:
    for number, svid in enumerate(update.svids):
        # The key first: a program that watches for the certificate finds its key in place.
        yield f"svid.{number}.key", keys.to_pem(svid.key), _PRIVATE
        yield f"svid.{number}.pem", to_pem(svid.chain), _PUBLIC
        yield f"bundle.{number}.pem", to_pem(svid.authorities), _PUBLIC
        for other, authorities in enumerate(update.federated.values()):
            yield f"federated_bundle.{number}.{other}.pem", to_pem(authorities), _PUBLIC


def _write(path: Path, content: bytes, mode: int) -> Path:
    # mkstemp creates the file with mode 0600 and never opens an existing one.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
