"""A stream of X.509-SVIDs of this process, read in a thread: what arrived, and how it ended."""

from __future__ import annotations

import queue
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Self

from cryptography import x509

from agent.client.workload import WorkloadClient, X509Update
from agent.errors import VouchdError
from tests.support.agent import PATIENCE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path


class Stream:
    """Owns a connection and the thread that reads it; `close` ends both."""

    def __init__(self, socket: Path) -> None:
        self._client = WorkloadClient(socket, PATIENCE_SECONDS)
        self._updates: queue.Queue[X509Update | VouchdError] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def next(self) -> X509Update:
        """The next message.

        Raises:
            VouchdError: the stream ended instead.
            queue.Empty: nothing came.
        """
        update = self._updates.get(timeout=PATIENCE_SECONDS)
        if isinstance(update, VouchdError):
            raise update
        return update

    def next_ids(self) -> list[str]:
        """The paths of the identities in the next message."""
        return [svid.spiffe_id.removeprefix("spiffe://example.org") for svid in self.next().svids]

    def is_silent(self) -> bool:
        """Whether nothing has come that nobody looked at."""
        return self._updates.empty()

    def close(self) -> None:
        """Hang up."""
        self._client.close()
        self._thread.join(PATIENCE_SECONDS)

    def _read(self) -> None:
        try:
            with closing(self._client.watch_x509_svids()) as updates:  # type: ignore[type-var]
                for update in updates:
                    self._updates.put(update)
        except VouchdError as error:
            self._updates.put(error)
        except ValueError:
            pass  # the channel was closed in the middle


def issuer_of(update: X509Update) -> x509.Name:
    """Who signed the first certificate of a message."""
    return x509.load_der_x509_certificate(update.svids[0].chain_der).issuer
