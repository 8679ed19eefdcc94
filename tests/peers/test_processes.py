"""Costs of all processes of a service."""

from __future__ import annotations

import os

import pytest

from tests.peers import processes
from tests.support import pids


def test_family_has_descendants_of_all_generations_and_nobody_else() -> None:
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}
    assert processes.family(2, parents) == [2, 3, 4]


def test_parent_is_found_behind_a_name_with_blanks_and_parentheses() -> None:
    assert processes.parent_in("7 (a) S 9 (b) R 4 7 7 0") == 4


def test_value_of_a_memory_line_is_in_kib() -> None:
    assert processes.kib_in("Rss:  10 kB\nPss:    123 kB\n", "Pss") == 123
    with pytest.raises(ValueError, match="'Pss'"):
        processes.kib_in("Pss_Anon:  1 kB\n", "Pss")


def test_service_counts_its_helpers() -> None:
    with pids.sleeping_child() as child:
        family = processes.family(os.getpid(), processes.parents())
        assert child in family
        assert processes.cpu_seconds(family) > processes.cpu_seconds([child])
        assert processes.pss_kib(family) > processes.pss_kib([child]) > 0
        assert processes.descriptors(family) > processes.descriptors([child]) > 0
