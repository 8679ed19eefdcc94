"""The secret that encrypts the SVID cache."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.authority.keystore import KeystoreError
from agent.svids.disk_cache import CREDENTIAL, KEY_FILE, cache_secret
from tests.unit.svids.disk_cache.conftest import Host


def test_the_secret_is_created_once_and_is_private(host: Host) -> None:
    secret = cache_secret(host.keystore, None)
    assert len(secret) == 32
    assert cache_secret(host.keystore, None) == secret
    assert stat.S_IMODE((host.file.with_name(KEY_FILE)).stat().st_mode) == 0o600


def test_a_secret_that_is_too_short_is_replaced(host: Host) -> None:
    host.keystore.write(KEY_FILE, b"short")
    assert len(cache_secret(host.keystore, None)) == 32


def test_a_secret_that_others_could_read_is_refused(host: Host) -> None:
    cache_secret(host.keystore, None)
    host.file.with_name(KEY_FILE).chmod(0o640)
    with pytest.raises(KeystoreError, match=r"other users have access to .*svids\.key"):
        cache_secret(host.keystore, None)


def test_a_credential_is_preferred_and_leaves_no_key_on_disk(host: Host, tmp_path: Path) -> None:
    (tmp_path / CREDENTIAL).write_bytes(b"c" * 40)
    assert cache_secret(host.keystore, tmp_path) == b"c" * 40
    assert not host.file.with_name(KEY_FILE).exists()


def test_other_credentials_are_ignored(host: Host, tmp_path: Path) -> None:
    assert len(cache_secret(host.keystore, tmp_path)) == 32


def test_a_credential_that_is_too_short_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / CREDENTIAL).write_bytes(b"c" * 31)
    with pytest.raises(KeystoreError, match="has 31 bytes: it needs at least 32"):
        cache_secret(host.keystore, tmp_path)


def test_a_credential_that_cannot_be_read_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / CREDENTIAL).mkdir()
    with pytest.raises(KeystoreError, match="cannot read the credential"):
        cache_secret(host.keystore, tmp_path)
