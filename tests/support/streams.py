"""A FetchX509SVID stream of this process, read in a thread."""

from __future__ import annotations

import queue
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Self

from cryptography import x509

from agent.client.workload import WorkloadClient, X509Update
from agent.errors import VouchdError
from tests.support.agent import SAFETY_SECONDS

if TYPE_CHECKING:
    from pathlib import Path


class Stream:
    """A connection with a FetchX509SVID stream and a reader thread; `close` ends both."""

    def __init__(self, socket: Path) -> None:
        self._client = WorkloadClient(socket, SAFETY_SECONDS)
        self._updates: queue.Queue[X509Update | VouchdError] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def next(self) -> X509Update:
        """Wait for the next message and return it.

        Raises:
            VouchdError: the stream ended.
            queue.Empty: no message arrived within SAFETY_SECONDS.
        """
        update = self._updates.get(timeout=SAFETY_SECONDS)
        if isinstance(update, VouchdError):
            raise update
        return update

    def next_ids(self) -> list[str]:
        """Return the SPIFFE ID paths in the next message."""
        return [svid.spiffe_id.removeprefix("spiffe://example.org") for svid in self.next().svids]

    def is_silent(self) -> bool:
        """Return whether no unread message has arrived."""
        return self._updates.empty()

    def close(self) -> None:
        """Close the connection and end the reader thread."""
        self._client.close()
        self._thread.join(SAFETY_SECONDS)

    def _read(self) -> None:
        try:
            with closing(self._client.watch_x509_svids()) as updates:  # type: ignore[type-var]
                for update in updates:
                    self._updates.put(update)
        except VouchdError as error:
            self._updates.put(error)
        except ValueError:
            pass  # `close` closed the channel during the read


def issuer_of(update: X509Update) -> x509.Name:
    """Return the issuer of the first certificate in a message."""
    return x509.load_der_x509_certificate(update.svids[0].chain_der).issuer
