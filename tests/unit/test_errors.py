"""What the system refuses is told with what to do about it."""

from __future__ import annotations

import errno
import os

import pytest

from agent.errors import with_remedy


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "No space left on device: make room on its disk"),
        (errno.EMFILE, r"Too many open files: allow the agent more open files \(LimitNOFILE="),
        (errno.EPIPE, "Broken pipe$"),
    ],
)
def test_a_refusal_of_the_system_says_what_to_do(number: int, told: str) -> None:
    with pytest.raises(OSError, match=told):
        raise OSError(with_remedy(OSError(number, os.strerror(number))))


def test_one_without_a_number_says_what_it_says() -> None:
    assert with_remedy(OSError("the moon is full")) == "the moon is full"
