"""Fingerprints of this process, and their comparison with the credentials at connect."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import AttestationError, PeerError
from agent.kernel.caller import Caller
from agent.kernel.fingerprint import (
    ProgramPin,
    check_credentials,
    executable_name,
    own_user_namespace,
    read_fingerprint,
)
from agent.kernel.process import ProcessView


def test_a_fingerprint_has_the_credentials_program_and_namespaces_of_the_process(
    me: Caller,
) -> None:
    with me.open_proc() as view:
        now = read_fingerprint(view)
        assert executable_name(view) == str(Path("/proc/self/exe").readlink())
    executable = Path("/proc/self/exe").stat()
    assert (now.uid, now.gid, now.groups) == (
        os.geteuid(),
        os.getegid(),
        frozenset(os.getgroups()),
    )
    assert now.executable is not None
    assert now.executable[:2] == (executable.st_dev, executable.st_ino)
    assert now.user_namespace == own_user_namespace()
    assert now.cgroup == Path("/proc/self/cgroup").read_bytes()


def test_a_process_with_other_credentials_than_at_connect_is_refused(me: Caller) -> None:
    with me.open_proc() as view:
        now = read_fingerprint(view)
    check_credentials(now, me.credentials)
    with pytest.raises(PeerError, match="changed its user or group"):
        check_credentials(now, replace(me.credentials, uid=now.uid + 1))
    with pytest.raises(PeerError, match="changed its supplementary groups"):
        check_credentials(now, replace(me.credentials, groups=(*now.groups, 7001)))


def test_a_status_file_of_unknown_format_is_an_error_not_a_match(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessView, "raw_read", lambda _view, _name: b"Name:\tx\n")
    with me.open_proc() as view, pytest.raises(AttestationError, match="proc_pid_status"):
        read_fingerprint(view)


def test_the_pin_of_a_process_that_executes_nothing_stays_unchanged(me: Caller) -> None:
    with me.open_proc() as view, closing(ProgramPin(view)) as pin:
        assert pin.holds
        assert not pin.changed()
