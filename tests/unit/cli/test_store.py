"""The files that --write makes."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from agent.cli.store import StoreError, write_update
from agent.cli.verify import (
    verify_update,
)
from agent.spiffe import keys
from tests.support.fetched import (
    CA,
    KEY,
    NOW,
    OTHER_CA,
    UPDATE,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_files_have_their_modes_and_no_temporary_file_remains(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "down"
    written = write_update(verify_update(UPDATE, NOW), directory)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {
        "svid.0.key": 0o600,
        "svid.0.pem": 0o644,
        "bundle.0.pem": 0o644,
        "federated_bundle.0.0.pem": 0o644,
    }
    assert {path.name for path in written} == set(modes)
    assert (directory / "svid.0.key").read_bytes() == keys.to_pem(KEY)
    bundle = x509.load_pem_x509_certificates((directory / "bundle.0.pem").read_bytes())
    assert bundle == [CA, OTHER_CA]


def test_a_link_in_the_place_of_the_key_is_replaced(
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (tmp_path / "svid.0.key").symlink_to(elsewhere)
    write_update(verify_update(UPDATE, NOW), tmp_path)
    assert elsewhere.read_text() == "untouched"
    assert not (tmp_path / "svid.0.key").is_symlink()


def test_the_key_has_mode_0600_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def watching_fsync(_descriptor: int) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(".svid.0.key*"))

    monkeypatch.setattr("os.fsync", watching_fsync)
    write_update(verify_update(UPDATE, NOW), tmp_path)
    assert set(modes) == {0o600}


def test_the_error_about_an_unusable_directory_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*/file/x: Not a directory; choose"):
        write_update(verify_update(UPDATE, NOW), tmp_path / "file" / "x")


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_update(verify_update(UPDATE, NOW), tmp_path)
    assert list(tmp_path.iterdir()) == []
