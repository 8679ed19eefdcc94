"""Power cuts between any two steps, on the worst disk that POSIX allows.

A write is certainly on this disk only after its fsync has returned. Before that, any part of a file
may be there, and any of the changes of a directory without the others. The test starts an agent on
every possible remainder. (tests/system/test_power_cut.py uses a real file system, which is milder.)
"""

from __future__ import annotations

import datetime as dt
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import pytest

from agent.authority.authority_set import AuthorityKind
from agent.authority.embedded import FILE, AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids.disk_cache import FILE as CACHE_FILE
from agent.svids.disk_cache import DiskCache, cache_secret
from agent.svids.x509 import X509Svids
from tests.support.fakes import FakeClock, FakeLog, identity

TD = TrustDomain("example.org")
HOUR = dt.timedelta(hours=1)
POLICY = AuthorityPolicy(trust_domain=TD, key_type=KeyType.EC_P256, ttl=24 * HOUR)

Names = dict[str, int]
Files = dict[str, bytes]


@dataclass
class Disk:
    """Records the changes of one directory, and computes every remainder after a power cut."""

    directory: Path
    synced_names: Names = field(default_factory=dict)
    synced_files: dict[int, bytes] = field(default_factory=dict)
    changes: list[tuple[str, int | None]] = field(default_factory=list)
    written: dict[int, bytes] = field(default_factory=dict)
    cuts: list[list[Files]] = field(default_factory=list)

    def look(self) -> None:
        """Record the present content as a moment at which the power may be cut."""
        names: Names = {}
        for each in self.directory.iterdir():
            status = each.lstat()
            if stat.S_ISREG(status.st_mode):
                names[each.name] = status.st_ino
                self.written[status.st_ino] = each.read_bytes()
        before = self._apply(self.changes)
        self.changes += [(n, names.get(n)) for n in before | names if before.get(n) != names.get(n)]
        assert len(self.changes) < 8, "the directory is never synced"
        self.cuts.append(list(self._remainders()))

    def sync(self, descriptor: int) -> None:
        self.look()
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            self.synced_files[status.st_ino] = self.written.get(status.st_ino, b"")
        elif Path(f"/proc/self/fd/{descriptor}").readlink() == self.directory:
            self.synced_names = self._apply(self.changes)
            self.changes = []
        self.look()

    def _apply(self, changes: list[tuple[str, int | None]]) -> Names:
        names = {**self.synced_names}
        for name, inode in changes:
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode
        return names

    def _remainders(self) -> Iterator[Files]:
        for count in range(len(self.changes) + 1):
            for some in combinations(self.changes, count):
                names = self._apply(list(some))
                for contents in product(*(self._contents(inode) for inode in names.values())):
                    yield dict(zip(names, contents, strict=True))

    def _contents(self, inode: int) -> set[bytes]:
        content = self.written.get(inode, b"")
        if self.synced_files.get(inode) == content:
            return {content}
        return {b"", content[: len(content) // 2], bytes(len(content)), content}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    directory = tmp_path / "data"
    directory.mkdir(0o700)
    disk = Disk(directory)
    real_rename = os.rename

    def rename(source: str, target: str, **directories: int) -> None:
        disk.look()
        real_rename(source, target, **directories)
        disk.look()

    monkeypatch.setattr(os, "fsync", disk.sync)
    monkeypatch.setattr(os, "rename", rename)
    return disk


async def boot(files: Files, directory: Path) -> bytes:
    """Start an agent on a remainder, and return its stored authorities."""
    directory.mkdir(0o700)
    for name, content in files.items():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    clock, lines = FakeClock(), FakeLog()
    with closing(Keystore(directory)) as keystore:
        authority = EmbeddedAuthority.open(POLICY, keystore, clock, lines.log)
        authority.close()
        secret = cache_secret(keystore, None)
        cache = DiskCache(keystore, secret, lambda: authority.bundle, clock, lines.log)
        cache.load()
        X509Svids(authority, clock, HOUR, lambda: 0.0, lines.log, store=cache).get(identity())
        await cache.close()
        return authority.authorities.to_json()


def distinct(cuts: list[list[Files]]) -> list[Files]:
    found = {tuple(sorted(files.items())): files for cut in cuts for files in cut}
    return list(found.values())


async def test_each_remainder_is_the_state_before_or_after_a_step(
    disk: Disk, tmp_path: Path
) -> None:
    """First start, SVIDs, and two steps of a rotation, cut between all of them."""
    clock, lines = FakeClock(), FakeLog()
    known: list[bytes] = []
    begins = [0]
    with closing(Keystore(disk.directory)) as keystore:
        authority = EmbeddedAuthority.open(POLICY, keystore, clock, lines.log)
        secret = cache_secret(keystore, None)
        cache = DiskCache(keystore, secret, lambda: authority.bundle, clock, lines.log)
        svids = X509Svids(authority, clock, HOUR, lambda: 0.0, lines.log, store=cache)
        for step in (None, authority.prepare, authority.activate):
            if step is not None:
                await step(AuthorityKind.X509)
            known.append(authority.authorities.to_json())
            begins.append(len(disk.cuts))
            svids.get(identity(f"n{len(known)}"))
            await cache.save()
        await cache.close()
        authority.close()
    tried = 0
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], len(disk.cuts)], strict=True)):
        possible = known[number - 1 : number + 1]  # before the first start no state is known
        for files in distinct(disk.cuts[begin:end]):
            tried += 1
            found = await boot(files, tmp_path / f"boot{tried}")
            assert found in possible or not number, files.keys()
    assert tried > 100


def test_model_loses_data_without_fsync(disk: Disk) -> None:
    """Otherwise it would prove nothing."""
    with closing(Keystore(disk.directory)) as keystore:
        keystore.write_unsynced(CACHE_FILE, (b"abcd",))
        keystore.write(FILE, b"wxyz")
    remainders = distinct(disk.cuts)
    assert {files[CACHE_FILE] for files in remainders if CACHE_FILE in files} == {
        b"",
        b"ab",
        bytes(4),
        b"abcd",
    }
    assert {files[FILE] for files in remainders if FILE in files} == {b"wxyz"}
    assert FILE not in remainders[0]
