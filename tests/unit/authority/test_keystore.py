from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.authority.keystore import MAX_FILE_BYTES, Keystore, KeystoreError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_the_directory_is_created_private(directory: Path) -> None:
    Keystore(directory).close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_written_file_reads_back(directory: Path) -> None:
    keystore = Keystore(directory)
    assert keystore.read("f") is None
    keystore.write("f", b"one")
    keystore.write("f", b"two")
    assert keystore.read("f") == b"two"
    assert stat.S_IMODE((directory / "f").stat().st_mode) == 0o600
    assert os.listdir(directory) == ["f"]
    keystore.close()


def test_the_mode_does_not_depend_on_the_umask(directory: Path) -> None:
    keystore = Keystore(directory)
    before = os.umask(0)
    try:
        keystore.write("f", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "f").stat().st_mode) == 0o600
    keystore.close()


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777, 0o701])
def test_a_directory_open_to_others_is_refused_and_unchanged(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(KeystoreError, match=rf"mode {mode:04o}.*chmod 0700 {directory}"):
        Keystore(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_open_to_others_is_refused_and_unchanged(directory: Path, mode: int) -> None:
    keystore = Keystore(directory)
    keystore.write("f", b"secret")
    (directory / "f").chmod(mode)
    with pytest.raises(KeystoreError, match=rf"mode {mode:04o}.*chmod 0600"):
        keystore.read("f")
    assert (directory / "f").read_bytes() == b"secret"
    keystore.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_file_or_directory_of_another_user_is_refused(directory: Path) -> None:
    keystore = Keystore(directory)
    keystore.write("f", b"")
    os.chown(directory / "f", 12345, -1)
    with pytest.raises(KeystoreError, match="belongs to user 12345"):
        keystore.read("f")
    keystore.close()
    os.chown(directory, 12345, -1)
    with pytest.raises(KeystoreError, match="belongs to user 12345"):
        Keystore(directory)


def test_links_pipes_and_directories_are_refused(directory: Path, tmp_path: Path) -> None:
    keystore = Keystore(directory)
    (tmp_path / "elsewhere").write_bytes(b"x")
    (directory / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(directory / "pipe", 0o600)
    (directory / "dir").mkdir(0o700)
    with pytest.raises(KeystoreError, match="symbolic link"):
        keystore.read("link")
    for name in ("pipe", "dir"):
        with pytest.raises(KeystoreError, match="not a regular file"):
            keystore.read(name)
    keystore.close()


def test_a_symbolic_link_to_a_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    directory.symlink_to(tmp_path / "real")
    with pytest.raises(KeystoreError, match="it is a symbolic link"):
        Keystore(directory)


def test_a_file_larger_than_the_limit_is_refused(directory: Path) -> None:
    keystore = Keystore(directory)
    keystore.write("f", b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(KeystoreError, match="more than vouchd ever writes"):
        keystore.read("f")
    keystore.close()


def test_a_second_agent_is_refused_until_the_first_closes(directory: Path) -> None:
    first = Keystore(directory)
    with pytest.raises(KeystoreError, match="another agent uses"):
        Keystore(directory)
    first.close()
    Keystore(directory).close()


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failed_write_keeps_the_old_content(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    keystore = Keystore(directory)
    keystore.write("f", b"old")

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(
        KeystoreError, match=r"No space left on device: make room on its disk; nothing was"
    ):
        keystore.write("f", b"new")
    monkeypatch.undo()
    assert keystore.read("f") == b"old"
    assert os.listdir(directory) == ["f"]
    keystore.close()


def test_a_read_only_disk_is_an_error_with_advice(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystore = Keystore(directory)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(
        KeystoreError, match=r"Read-only file system: mount its disk .*; nothing was changed"
    ):
        keystore.write("f", b"new")
    keystore.close()


def test_file_name_and_directory_are_synced_in_this_order(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another order can lose both contents in a power cut."""
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"fsync {kind}")
        real_fsync(descriptor)

    def rename(source: str, target: str, **directories: int) -> None:
        steps.append("rename")
        real_rename(source, target, **directories)

    keystore = Keystore(directory)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    keystore.write("f", b"x")
    assert steps == ["fsync file", "rename", "fsync directory"]
    keystore.close()


def test_a_temporary_file_of_a_crash_is_replaced(directory: Path) -> None:
    keystore = Keystore(directory)
    (directory / ".f.new").write_bytes(b"half")
    keystore.write("f", b"whole")
    assert os.listdir(directory) == ["f"]
    keystore.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_created_is_an_error_with_advice(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(KeystoreError, match="Permission denied; choose another data_dir"):
        Keystore(tmp_path / "data")


def test_a_file_in_place_of_the_directory_is_an_error(directory: Path) -> None:
    directory.write_bytes(b"")
    with pytest.raises(KeystoreError, match="cannot use the data directory"):
        Keystore(directory)


def test_unsynced_and_appended_chunks_read_back(directory: Path) -> None:
    keystore = Keystore(directory)
    keystore.write_unsynced("f", (b"one ", b"two"))
    keystore.append("f", (b" three", b" four"))
    assert keystore.read("f") == b"one two three four"
    assert stat.S_IMODE((directory / "f").stat().st_mode) == 0o600
    keystore.write_unsynced("f", ())
    assert keystore.read("f") == b""
    keystore.remove("f")
    keystore.remove("f")
    assert keystore.read("f") is None
    keystore.close()


def test_unsynced_writes_call_no_fsync(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore = Keystore(directory)

    def fsync(_descriptor: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fsync", fsync)
    keystore.write_unsynced("f", (b"x",))
    keystore.append("f", (b"x",))
    keystore.close()


def test_append_needs_a_regular_file(directory: Path) -> None:
    keystore = Keystore(directory)
    (directory / "dir").mkdir(0o700)
    for name in ("missing", "dir"):
        with pytest.raises(KeystoreError, match=f"cannot write {directory / name}"):
            keystore.append(name, (b"x",))
    assert os.listdir(directory) == ["dir"]
    with pytest.raises(KeystoreError, match=f"cannot remove {directory / 'dir'}"):
        keystore.remove("dir")
    keystore.close()


def test_a_read_error_of_the_disk_is_an_error_with_its_reason(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystore = Keystore(directory)
    keystore.write("f", b"x")

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdopen", fail)
    with pytest.raises(KeystoreError, match=f"cannot read {directory}/f: Input/output error"):
        keystore.read("f")
    keystore.close()


def name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def test_each_created_directory_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(name_of(fd)))
    Keystore(tmp_path / "a" / "b" / "data").close()
    assert synced == [str(tmp_path), f"{tmp_path}/a", f"{tmp_path}/a/b"]
    assert stat.S_IMODE((tmp_path / "a" / "b" / "data").stat().st_mode) == 0o700


def test_a_failed_sync_of_the_directory_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystore = Keystore(directory)

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeystoreError, match=r"was replaced, but may be lost in a power cut"):
        keystore.write("f", b"x")
    keystore.close()
