"""The socket file: its mode and owner, and paths that are taken."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from agent.errors import StartupError
from agent.gate.listener import Listener, SocketFile, settings_without_effect


def file_at(path: Path, **fields: object) -> SocketFile:
    return SocketFile(path=path, **{"mode": 0o666, **fields})  # type: ignore[arg-type]


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(str(path)) == 0


def test_the_socket_has_the_configured_mode_and_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new/agent.sock"
    before = os.umask(0o077)
    try:
        listener = Listener(file_at(path, mode=0o640))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755, "workloads must reach the socket"
    assert can_connect(path)
    listener.close()
    assert not path.exists()


def test_the_socket_of_a_live_agent_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = Listener(file_at(path))
    inode = path.stat().st_ino
    with pytest.raises(StartupError, match=f"another agent is serving on {path}"):
        Listener(file_at(path))
    assert path.stat().st_ino == inode
    assert can_connect(path)
    first.close()


@pytest.mark.parametrize("backlog", [0, 10])
def test_the_socket_of_another_live_program_is_not_replaced(tmp_path: Path, backlog: int) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(backlog)
        waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(str(path))
        with pytest.raises(StartupError, match="another program is serving"):
            Listener(file_at(path))
        for sock in waiting:
            sock.close()
    assert path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert not can_connect(path)
    listener = Listener(file_at(path))
    assert can_connect(path)
    listener.close()


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StartupError, match="is not a socket; remove it, or choose another path"):
        Listener(file_at(path))
    assert path.read_text() == "precious"


def test_another_file_at_the_path_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(file_at(path))
    path.unlink()
    path.write_text("another program's")
    listener.close()
    assert path.read_text() == "another program's"


def test_close_succeeds_after_the_socket_file_was_removed(tmp_path: Path) -> None:
    listener = Listener(file_at(tmp_path / "s"))
    (tmp_path / "s").unlink()
    listener.close()


def test_a_socket_without_permission_to_connect_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))

    def refuse(_sock: socket.socket, _path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(StartupError, match="remove it if it is not"):
        Listener(file_at(path))
    assert path.exists()


def test_an_unknown_owner_or_group_leaves_the_path_free(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(StartupError, match="user 'no-such-name' does not exist"):
        Listener(file_at(path, owner="no-such-name"))
    with pytest.raises(StartupError, match="group 'no-such-name' does not exist"):
        Listener(file_at(path, group="no-such-name"))
    assert not path.exists()
    Listener(file_at(path)).close()


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="too long"):
        Listener(file_at(tmp_path / ("x" * 108)))


def test_a_directory_that_cannot_be_made_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="choose another path"):
        Listener(file_at(tmp_path / "file/agent.sock"))


def test_owner_and_group_may_be_numbers(tmp_path: Path) -> None:
    listener = Listener(file_at(tmp_path / "s", owner=str(os.geteuid()), group=str(os.getegid())))
    assert (tmp_path / "s").stat().st_uid == os.geteuid()
    listener.close()


def test_a_group_that_the_agent_may_not_set_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(StartupError, match="add the group to SupplementaryGroups="):
        Listener(file_at(tmp_path / "s", group=str(os.getegid())))
    assert not (tmp_path / "s").exists()


def test_settings_that_differ_from_a_passed_socket_have_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
    path.chmod(0o666)
    mine = {"owner": str(os.geteuid()), "group": str(path.stat().st_gid)}
    assert settings_without_effect(file_at(path)) == ()
    assert settings_without_effect(file_at(path, **mine)) == ()
    assert settings_without_effect(file_at(path, mode=0o660, owner="77777", group="77777")) == (
        "socket_mode",
        "socket_owner",
        "socket_group",
    )


def test_without_root_the_socket_cannot_belong_to_another_user(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may change every owner")
    with pytest.raises(StartupError, match="cannot make the socket"):
        Listener(file_at(tmp_path / "s", owner="0"))
    assert not (tmp_path / "s").exists()
