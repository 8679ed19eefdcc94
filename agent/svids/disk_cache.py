"""X.509-SVIDs that survive a restart of the agent, in one file of the data directory.

* It is only a cache: a failed read or write is a log line and costs clients a new SVID. It never
  keeps the agent from starting or serving.
* No call waits for the disk: a thread writes SVIDs about a second after they were issued, and when
  the agent stops.
* New SVIDs are appended. The file is rewritten by the first save after a start, when most of it is
  outdated, and after a failure, which may have left half a record.
* The file is not fsynced: a power cut ends the clients too.
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from agent.authority.keystore import KeystoreError
from agent.svids.sealed_file import MIN_SECRET_BYTES, Sealer, StoredSvid, fingerprint, unseal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from agent.authority.keystore import Keystore
    from agent.clock import Clock
    from agent.entries.identity import Identity
    from agent.spiffe.bundle import TrustBundle
    from agent.svids.x509_svid import X509Svid

FILE = "svids.cache"
KEY_FILE = "svids.key"
CREDENTIAL = "vouchd.svid-cache-key"
SETTLE_SECONDS = 1.0
RETRY_SECONDS = 60.0
# 800 bytes each. With outdated records the file stays below 40 MB. The oldest SVIDs make room.
MAX_SVIDS = 20_000
MAX_FILE_BYTES = 64 << 20
# This many outdated records are no reason to rewrite the file.
SLACK = 1_000


class DiskCache:
    """The SvidStore of `agent.svids.x509`. Owns its thread; `close` saves, and ends it.

    Args:
        keystore: the directory of the file.
        secret: encrypts the file.
        bundle: returns the current trust bundle, which verifies stored SVIDs.
        clock: wall time.
        log: receives failures to read and to write.
        max_svids: the most SVIDs in the file.
        slack: outdated records that are no reason to rewrite the file.
    """

    def __init__(
        self,
        keystore: Keystore,
        secret: bytes,
        bundle: Callable[[], TrustBundle],
        clock: Clock,
        log: FilteringBoundLogger,
        *,
        max_svids: int = MAX_SVIDS,
        slack: int = SLACK,
    ) -> None:
        self._max_svids = max_svids
        self._slack = slack
        self._keystore = keystore
        self._secret = secret
        self._bundle = bundle
        self._clock = clock
        self._log = log
        self._stored: dict[bytes, StoredSvid] = {}
        self._unsaved: list[StoredSvid] = []
        self._has_unsaved = asyncio.Event()
        self._sealer: Sealer | None = None
        self._appendable = 0
        self._failing = False
        self._thread = ThreadPoolExecutor(1, "svid cache")

    def load(self) -> None:
        """Read the stored SVIDs that are not due for renewal."""
        try:
            data = self._keystore.read(FILE, MAX_FILE_BYTES)
        except KeystoreError as error:
            self._log.warning("svid cache not used", reason=str(error))
            return
        if data is None:
            return
        bundle = self._bundle()
        unsealed = unseal(data, self._secret, bundle.trust_domain)
        if unsealed.fault:
            path = str(self._keystore.directory / FILE)
            self._log.warning(
                "svid cache partly used" if unsealed.svids else "svid cache not used",
                reason=f"{path}: {unsealed.fault}; missing SVIDs are issued anew",
            )
        self._stored = {svid.fingerprint: svid for svid in unsealed.svids}
        self._drop_due()
        self._log.debug("svid cache loaded", count=len(self._stored))

    def find(self, identity: Identity) -> X509Svid | None:
        """The stored SVID of an identity, if it verifies now and is not due for renewal."""
        now = self._clock.now()
        stored = self._stored.get(fingerprint(identity))
        if stored is None or stored.renew_at <= now:
            return None
        try:
            return stored.restore(identity, self._bundle(), now)
        except ValueError as error:
            self._log.info("stored svid not used", entry_id=identity.entry_id, reason=str(error))
            return None

    def put(self, identity: Identity, svid: X509Svid) -> None:
        """Replace the stored SVID of an identity; `run` writes it to the disk."""
        stored = StoredSvid.of(identity, svid)
        self._stored.pop(stored.fingerprint, None)  # so that the oldest comes first
        self._stored[stored.fingerprint] = stored
        self._unsaved.append(stored)
        if len(self._stored) > self._max_svids:
            del self._stored[next(iter(self._stored))]
        self._has_unsaved.set()

    async def run(self) -> None:
        """Save new SVIDs until cancelled."""
        while True:
            await self._has_unsaved.wait()
            await self._clock.sleep(RETRY_SECONDS if self._failing else SETTLE_SECONDS)
            await self.save()

    async def save(self) -> None:
        """Write the SVIDs that are not on the disk yet."""
        unsaved, self._unsaved = self._unsaved, []
        # None until all is written: this may be cancelled, and the file is then in doubt.
        sealer, self._sealer = self._sealer, None
        try:
            if sealer is None or len(unsaved) > self._appendable:
                sealer = await self._rewrite()
            else:
                await self._append(sealer, unsaved)
        except Exception as error:  # noqa: BLE001 - no failure of the cache may end the agent
            self._on_failed(error)
            return
        self._sealer = sealer
        if not self._unsaved:
            self._has_unsaved.clear()
        if self._failing:
            self._log.info("svid cache saved")
        self._failing = False

    async def close(self) -> None:
        """Save the remaining SVIDs, and end the thread."""
        if self._has_unsaved.is_set():
            await self.save()
        self._thread.shutdown()

    async def _append(self, sealer: Sealer, svids: list[StoredSvid]) -> None:
        self._appendable -= len(svids)
        await self._in_thread(partial(self._keystore.append, FILE, map(sealer.record, svids)))

    async def _rewrite(self) -> Sealer:
        self._drop_due()
        svids = tuple(self._stored.values())
        self._appendable = len(svids) + self._slack
        sealer = Sealer(self._secret, self._bundle().trust_domain)
        # Encrypted one by one while the thread writes, so that the event loop gets its turn.
        chunks = chain((sealer.header,), map(sealer.record, svids))
        await self._in_thread(partial(self._keystore.write_unsynced, FILE, chunks))
        return sealer

    def _on_failed(self, error: Exception) -> None:
        if not self._failing:
            self._log.warning(
                "svid cache not saved",
                reason=f"{error}; after a restart clients may get new SVIDs",
            )
        self._failing = True

    def _drop_due(self) -> None:
        now = self._clock.now()
        self._stored = {key: svid for key, svid in self._stored.items() if svid.renew_at > now}

    async def _in_thread(self, write: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, write)


def cache_secret(keystore: Keystore, credentials: Path | None) -> bytes:
    """The secret that encrypts the cache: a credential of the service manager, or a stored file.

    Args:
        keystore: the directory of the file, which is created if there is no credential.
        credentials: the directory of the service's credentials (systemd.exec(5), CREDENTIALS).

    Raises:
        KeystoreError: the credential or the file cannot be used, or the file cannot be created.
    """
    if credentials is not None and (path := credentials / CREDENTIAL).exists():
        return _read_credential(path)
    secret = keystore.read(KEY_FILE)
    if secret is None or len(secret) < MIN_SECRET_BYTES:
        secret = secrets.token_bytes(MIN_SECRET_BYTES)
        keystore.write(KEY_FILE, secret)
    return secret


def _read_credential(path: Path) -> bytes:
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise KeystoreError(f"cannot read the credential {path}: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise KeystoreError(
            f"the credential {path} has {len(secret)} bytes: it needs at least {MIN_SECRET_BYTES}"
        )
    return secret
