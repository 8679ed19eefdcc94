"""Run a command with SO_PEERPIDFD as on an older kernel, by a seccomp(2) filter.

python tests/support/old_kernel.py ENOPROTOOPT COMMAND...     Linux < 6.5: the option is unknown
python tests/support/old_kernel.py EINVAL COMMAND...          Linux < 6.16: the peer was reaped
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

_GETSOCKOPT = {"x86_64": 55, "aarch64": 209}
_SO_PEERPIDFD = 77
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# struct seccomp_data: the number of the call, and the low half of its third argument.
_NUMBER_AT, _THIRD_ARGUMENT_AT = 0, 32


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def answer_peerpidfd_with(number: int) -> None:
    """Answer SO_PEERPIDFD with this errno in this process and its children, permanently."""
    instructions = [
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_EQUAL, 0, 3, _GETSOCKOPT[platform.machine()]),
        (_LOAD, 0, 0, _THIRD_ARGUMENT_AT),
        (_JUMP_IF_EQUAL, 0, 1, _SO_PEERPIDFD),
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")


def without_peerpidfd(answer: str) -> tuple[str, ...]:
    """Return the prefix of a command line that runs the command with this answer."""
    return (sys.executable, str(Path(__file__).resolve()), answer)


if __name__ == "__main__":
    answer_peerpidfd_with(getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command line is the test's
