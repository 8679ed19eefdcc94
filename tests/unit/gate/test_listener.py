from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from agent.errors import StartupError
from agent.gate.listener import Listener, SocketFile, disregarded


def file_at(path: Path, **fields: object) -> SocketFile:
    return SocketFile(path=path, **{"mode": 0o666, **fields})  # type: ignore[arg-type]


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(str(path)) == 0


def test_it_listens_with_the_mode_asked_for_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "new/agent.sock"
    before = os.umask(0o077)
    try:
        listener = Listener(file_at(path, mode=0o640))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755, "workloads must get through"
    assert can_connect(path)
    listener.close()
    assert not path.exists()


def test_a_live_socket_is_never_stolen(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = Listener(file_at(path))
    inode = path.stat().st_ino
    with pytest.raises(StartupError, match=f"another agent is serving on {path}"):
        Listener(file_at(path))
    assert path.stat().st_ino == inode
    assert can_connect(path)
    first.close()


@pytest.mark.parametrize("backlog", [0, 10])
def test_nor_is_that_of_another_program(tmp_path: Path, backlog: int) -> None:
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


def test_what_is_no_socket_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StartupError, match="is not a socket; it was left untouched"):
        Listener(file_at(path))
    assert path.read_text() == "precious"


def test_only_the_own_inode_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(file_at(path))
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.read_text() == "somebody else's"


def test_a_socket_that_was_removed_by_hand_is_no_error_at_the_end(tmp_path: Path) -> None:
    listener = Listener(file_at(tmp_path / "s"))
    (tmp_path / "s").unlink()
    listener.close()


def test_a_socket_that_may_not_be_tried_is_not_called_live(
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


def test_after_a_failure_the_path_is_free_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(StartupError, match="no user 'nobody-of-that-name'"):
        Listener(file_at(path, owner="nobody-of-that-name"))
    with pytest.raises(StartupError, match="no group 'nobody-of-that-name'"):
        Listener(file_at(path, group="nobody-of-that-name"))
    assert not path.exists()
    Listener(file_at(path)).close()


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="too long"):
        Listener(file_at(tmp_path / ("x" * 108)))


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="choose another path"):
        Listener(file_at(tmp_path / "file/agent.sock"))


def test_owner_and_group_by_number(tmp_path: Path) -> None:
    listener = Listener(file_at(tmp_path / "s", owner=str(os.geteuid()), group=str(os.getegid())))
    assert (tmp_path / "s").stat().st_uid == os.geteuid()
    listener.close()


def test_the_way_to_give_it_to_a_group_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(StartupError, match="name that in SupplementaryGroups="):
        Listener(file_at(tmp_path / "s", group=str(os.getegid())))
    assert not (tmp_path / "s").exists()


def test_what_does_not_hold_for_anothers_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
    path.chmod(0o666)
    mine = {"owner": str(os.geteuid()), "group": str(path.stat().st_gid)}
    assert disregarded(file_at(path)) == ()
    assert disregarded(file_at(path, **mine)) == ()
    assert disregarded(file_at(path, mode=0o660, owner="77777", group="77777")) == (
        "socket_mode",
        "socket_owner",
        "socket_group",
    )


def test_a_socket_that_may_not_be_given_away(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may give everything away")
    with pytest.raises(StartupError, match="cannot make the socket"):
        Listener(file_at(tmp_path / "s", owner="0"))
    assert not (tmp_path / "s").exists()
