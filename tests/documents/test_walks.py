"""README.md, the quickstart and others do what they say, for an ordinary user in a clean clone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.agent import REPOSITORY
from tests.support.clone import Clone
from tests.support.documents import AS_USER, Reader


@pytest.fixture
def clone() -> Iterator[Clone]:
    with Clone() as made:
        yield made


@pytest.mark.parametrize("name", AS_USER)
def test_the_walk_works_as_typed(clone: Clone, name: str) -> None:
    with Reader(clone.terminal) as reader:
        assert reader.follow(REPOSITORY / name)
