"""Credentials of a peer: unmapped IDs, and group lists that getsockopt(2) does not return."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from agent.errors import PeerError
from agent.kernel.caller import identify
from agent.kernel.credentials import OverflowIds, overflow_ids, read_credentials
from tests.support.peers import altered


def ucred(pid: int, uid: int, gid: int) -> bytes:
    return struct.pack("=iII", pid, uid, gid)


def some_unmapped() -> OverflowIds:
    return OverflowIds(65534, 65534)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (ucred(0, 0, 0), "PID namespace"),
        (ucred(0, 0xFFFFFFFF, 0xFFFFFFFF), "PID namespace"),
        (ucred(1, 0xFFFFFFFF, 0), "not mapped"),
        (ucred(1, 0, 0xFFFFFFFF), "not mapped"),
    ],
)
def test_a_caller_without_a_visible_pid_or_user_is_refused(raw: bytes, reason: str) -> None:
    with altered(cred=raw) as sock, pytest.raises(PeerError, match=reason):
        identify(sock)


@pytest.mark.parametrize("raw", [ucred(1, 65534, 0), ucred(1, 0, 65534)])
def test_the_overflow_ids_are_refused_where_some_ids_are_not_mapped(raw: bytes) -> None:
    with altered(cred=raw) as sock, pytest.raises(PeerError, match="not mapped"):
        read_credentials(sock, some_unmapped)


def test_unmapped_groups_are_left_out() -> None:
    with altered(groups=struct.pack("=III", 4, 65534, 27)) as sock:
        assert read_credentials(sock, some_unmapped).groups == (4, 27)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("         0          0 4294967295\n", -1),
        ("         0     100000      65536\n", 65533),
        ("         0       1000          1\n         1     100000 65536\n", 65533),
    ],
)
def test_an_overflow_id_is_an_ordinary_id_where_every_id_is_mapped(
    tmp_path: Path, mapping: str, expected: int
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "sys/kernel").mkdir(parents=True)
    for kind in ("uid", "gid"):
        (tmp_path / f"self/{kind}_map").write_text(mapping)
        (tmp_path / f"sys/kernel/overflow{kind}").write_text("65533\n")
    assert overflow_ids(tmp_path) == OverflowIds(expected, expected)


def test_groups_that_cannot_be_read_are_an_error_not_an_empty_list() -> None:
    with altered(groups=OSError(errno.EIO, "broken")) as sock, pytest.raises(OSError, match="brok"):
        identify(sock)
