"""Every row of requirements.md has its test, and every test its row."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ROW = re.compile(r"^\| ([A-Z][A-Z0-9]-\d\d) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_TEST = re.compile(r"test_([A-Z][A-Z0-9])_(\d\d)_\w+")
# How many ids of the standards say "test me": none may get lost from the table.
_FROM_THE_STANDARDS = {"ID": 17, "SV": 5, "X5": 35, "JW": 19, "WE": 17, "WL": 43}


def _required() -> list[str]:
    return [row[0] for row in _ROW.findall((_HERE / "requirements.md").read_text("utf-8"))]


def _tested(directory: Path) -> list[str]:
    """The ids in the names of a directory's tests, once for each function."""
    trees = [ast.parse(path.read_text("utf-8")) for path in directory.glob("test_*.py")]
    names = [n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return [f"{found[1]}-{found[2]}" for name in names if (found := _TEST.fullmatch(name))]


def test_every_id_has_a_test() -> None:
    tested = {*_tested(_HERE), *_tested(_HERE / "of_vouchd")}
    assert sorted(tested) == sorted(_required())


@pytest.mark.parametrize("directory", [_HERE, _HERE / "of_vouchd"], ids=lambda path: path.name)
def test_no_id_has_two_tests(directory: Path) -> None:
    """One on the wire and one of vouchd's code is what an id for two roles may have."""
    assert [name for name, count in Counter(_tested(directory)).items() if count > 1] == []


def test_the_table_is_complete() -> None:
    assert sorted(set(_required())) == sorted(_required())
    counts = Counter(name[:2] for name in _required() if not name.startswith("EC"))
    assert counts == _FROM_THE_STANDARDS
