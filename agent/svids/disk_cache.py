"""The SVIDs that outlast a restart of the agent, in one file of the data directory.

* It is a cache and nothing more: what cannot be read, or not be written, is a line in the log, and
  costs its clients a new SVID. It never keeps the agent from starting or serving.
* Nobody waits for it: SVIDs are written in a thread, about a second after they were made, and at
  stop.
* New ones are added at the end of the file. It is written anew by the first save after a start,
  when most of it is outdated, and after a failure, which may have left half a record behind.
* It is not fsynced: a power cut ends the clients too.
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
# Of 800 bytes each; with what is outdated the file stays below 40 MB. The oldest make room.
MAX_SVIDS = 20_000
MAX_FILE_BYTES = 64 << 20
# So many outdated records are no reason yet to write the file anew.
SLACK = 1_000


class DiskCache:
    """The shelf of `agent.svids.x509`. Owns its thread; `close` saves, and ends it.

    Args:
        keystore: where the file is.
        secret: what it is sealed with.
        bundle: gives the bundle that SVIDs have to verify with, as of now.
        clock: the time.
        log: where to say what is not kept.
    """

    def __init__(
        self,
        keystore: Keystore,
        secret: bytes,
        bundle: Callable[[], TrustBundle],
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._keystore = keystore
        self._secret = secret
        self._bundle = bundle
        self._clock = clock
        self._log = log
        self._stored: dict[bytes, StoredSvid] = {}
        self._unsaved: list[StoredSvid] = []
        self._wanted = asyncio.Event()
        self._seal: Sealer | None = None
        self._room = 0
        self._failing = False
        self._thread = ThreadPoolExecutor(1, "svid cache")

    def load(self) -> None:
        """Take up what is stored and not due for renewal."""
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
                "svid cache used in part" if unsealed.svids else "svid cache not used",
                reason=f"{path}: {unsealed.fault}; SVIDs that are missing are made anew",
            )
        self._stored = {svid.fingerprint: svid for svid in unsealed.svids}
        self._trim()
        self._log.debug("svid cache loaded", svids=len(self._stored))

    def find(self, identity: Identity) -> X509Svid | None:
        """See Shelf.find."""
        now = self._clock.now()
        stored = self._stored.get(fingerprint(identity))
        if stored is None or stored.renew_at <= now:
            return None
        try:
            return stored.restore(identity, self._bundle(), now)
        except ValueError as error:
            self._log.info("stored svid not used", entry=identity.entry_id, reason=str(error))
            return None

    def put(self, identity: Identity, svid: X509Svid) -> None:
        """See Shelf.put."""
        stored = StoredSvid.of(identity, svid)
        self._stored.pop(stored.fingerprint, None)  # so that the order is that of age
        self._stored[stored.fingerprint] = stored
        self._unsaved.append(stored)
        if len(self._stored) > MAX_SVIDS:
            del self._stored[next(iter(self._stored))]
        self._wanted.set()

    async def run(self) -> None:
        """Save what was put here, for ever."""
        while True:
            await self._wanted.wait()
            await self._clock.sleep(RETRY_SECONDS if self._failing else SETTLE_SECONDS)
            await self.save()

    async def save(self) -> None:
        """Write what is not written yet."""
        unsaved, self._unsaved = self._unsaved, []
        seal, self._seal = self._seal, None  # until all is written: this may be cancelled
        try:
            if seal is None or len(unsaved) > self._room:
                seal = await self._rewrite()
            else:
                await self._append(seal, unsaved)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the agent
            self._on_failed(error)
            return
        self._seal = seal
        if not self._unsaved:
            self._wanted.clear()
        if self._failing:
            self._log.info("svid cache saved again")
        self._failing = False

    async def close(self) -> None:
        """Save the rest."""
        if self._wanted.is_set():
            await self.save()
        self._thread.shutdown()

    async def _append(self, seal: Sealer, svids: list[StoredSvid]) -> None:
        self._room -= len(svids)
        await self._in_thread(partial(self._keystore.append, FILE, map(seal.record, svids)))

    async def _rewrite(self) -> Sealer:
        self._trim()
        svids = tuple(self._stored.values())
        self._room = len(svids) + SLACK
        seal = Sealer(self._secret, self._bundle().trust_domain)
        # Sealed on the way to the disk, so that other threads have their turn at every write.
        chunks = chain((seal.header,), map(seal.record, svids))
        await self._in_thread(partial(self._keystore.spool, FILE, chunks))
        return seal

    def _on_failed(self, error: Exception) -> None:
        if not self._failing:
            self._log.warning(
                "svid cache not saved",
                reason=str(error),
                effect="clients may get new SVIDs after a restart",
            )
        self._failing = True

    def _trim(self) -> None:
        now = self._clock.now()
        self._stored = {mark: svid for mark, svid in self._stored.items() if svid.renew_at > now}

    async def _in_thread(self, write: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, write)


def cache_secret(keystore: Keystore, credentials: Path | None) -> bytes:
    """What the cache is sealed with: a credential of the service manager, or a file made here.

    Args:
        keystore: where the file is.
        credentials: the directory of the service's credentials (systemd.exec(5), CREDENTIALS).

    Raises:
        KeystoreError: the credential, or the file, cannot be used, or the file not be made.
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
            f"the credential {path} has {len(secret)} bytes; give {MIN_SECRET_BYTES} at least"
        )
    return secret
