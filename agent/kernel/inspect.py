"""Collect facts for an operator: all that the kernel states about a process and its ancestors.

Nothing here is evidence. A process that an operator names by its PID has not connected: the agent
can only say which identities it would get.
"""

from __future__ import annotations

import grp
import os
import pwd
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.errors import PeerGoneError
from agent.kernel.caller import Caller, Proof
from agent.kernel.credentials import Credentials, overflow_ids
from agent.kernel.fingerprint import read_fingerprint
from agent.kernel.process import ProcessHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.kernel.process import ProcessView

_NAMESPACES = ("user", "pid", "mnt", "cgroup")


def process_by_pid(pid: int) -> Caller:
    """Return a Caller for this PID, as if the process had just connected. Close the result.

    Raises:
        PeerGoneError: there is no such process.
        AttestationError: the agent may not read its `/proc` directory.
    """
    try:
        process = ProcessHandle(os.pidfd_open(pid))
    except (OSError, OverflowError) as error:
        raise PeerGoneError(f"there is no process {pid}") from error
    unknown = Credentials(pid=pid, uid=-1, gid=-1, groups=())
    caller = Caller(credentials=unknown, proof=Proof.PIDFD_OPEN, process=process)
    try:
        with caller.open_proc() as view:
            now = read_fingerprint(view)
    except BaseException:
        process.close()
        raise
    groups = tuple(sorted(now.groups - {overflow_ids().gid}))
    known = Credentials(pid=pid, uid=now.uid, gid=now.gid, groups=groups)
    return Caller(credentials=known, proof=Proof.PIDFD_OPEN, process=process)


def facts_of(caller: Caller) -> dict[str, Any]:
    """Read all facts that the kernel states about a process, as plain data for display.

    Raises:
        PeerGoneError: the process is gone, so the facts may belong to no process.
    """
    credentials = caller.credentials
    with caller.open_proc() as view:
        report: dict[str, Any] = {
            "pid": credentials.pid,
            "uid": credentials.uid,
            "user": _name(lambda: pwd.getpwuid(credentials.uid).pw_name),
            "gid": credentials.gid,
            "group": _group(credentials.gid),
            "supplementary_gids": credentials.groups,
            "supplementary_groups": [_group(gid) for gid in credentials.groups],
            "proof": str(caller.proof),
            "weaknesses": caller.weaknesses,
            "pidfd_inode": caller.process.inode,
            "command": _read(lambda: os.fsdecode(view.read("comm")).rstrip("\n")),
            "executable": _read(lambda: view.readlink("exe")),
            "executable_file": _read(lambda: _file_id(view)),
            "namespaces": [_read(partial(view.readlink, f"ns/{kind}")) for kind in _NAMESPACES],
            "cgroup": _read(lambda: os.fsdecode(view.read("cgroup"))).splitlines(),
            "display_only_read_by_pid": {"process_tree": _tree(credentials.pid)},
        }
    if not caller.process.is_alive():
        raise PeerGoneError(f"the process {credentials.pid} exited while its facts were read")
    return report


def _file_id(view: ProcessView) -> str:
    status = view.stat("exe")
    return f"device {os.major(status.st_dev)}:{os.minor(status.st_dev)} inode {status.st_ino}"


def _read(look: Callable[[], str]) -> str:
    try:
        return look()
    except OSError as error:
        return f"not readable: {error.strerror}"


def _group(gid: int) -> str:
    return _name(lambda: grp.getgrgid(gid).gr_name)


def _name(look_up: Callable[[], str]) -> str:
    try:
        return look_up()
    except KeyError:
        return "(no name)"


def _tree(pid: int) -> list[str]:
    """Name the process and its ancestors, the nearest first."""
    import psutil  # noqa: PLC0415 - few agents are ever asked

    try:
        process = psutil.Process(pid)  # noqa: TID251 - display only, and marked so
        return [f"{each.pid} {each.name()}" for each in (process, *process.parents())]
    except psutil.Error:
        return []
