"""Errors of the operating system, with the way out."""

from __future__ import annotations

import errno
import os

import pytest

from agent.errors import with_remedy


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device: make room on its disk"),
        (errno.EMFILE, r"Too many open files: allow the agent more open files \(LimitNOFILE="),
        (errno.EPIPE, "Broken pipe$"),
    ],
)
def test_a_known_errno_has_the_way_out(number: int, message: str) -> None:
    with pytest.raises(OSError, match=message):
        raise OSError(with_remedy(OSError(number, os.strerror(number))))


def test_an_error_without_an_errno_keeps_its_text() -> None:
    assert with_remedy(OSError("the moon is full")) == "the moon is full"
