"""requirements.md and the tests agree."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

_HERE = Path(__file__).parent
_ROW = re.compile(
    r"^\| ([A-Z][A-Z0-9]-\d\d) \| [^|]+ \| [^|]+ \| (wire|situation|library) \| [^|]+ \|$",
    re.MULTILINE,
)
_TEST = re.compile(r"test_([A-Z][A-Z0-9])_(\d\d)_\w+")
# The number of requirements of each standard that a test can decide: the table may lose none.
_COUNTS = {"ID": 17, "SV": 5, "X5": 35, "JW": 19, "WE": 17, "WL": 43}


def _rows() -> list[tuple[str, str]]:
    return _ROW.findall((_HERE / "requirements.md").read_text("utf-8"))


def _tested() -> list[str]:
    """Return the ids in the names of this package's tests."""
    trees = [ast.parse(path.read_text("utf-8")) for path in _HERE.glob("test_*.py")]
    names = [n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return [f"{found[1]}-{found[2]}" for name in names if (found := _TEST.fullmatch(name))]


def test_every_requirement_of_a_server_has_one_test() -> None:
    assert sorted(_tested()) == sorted(name for name, where in _rows() if where != "library")


def test_the_table_has_every_requirement_once() -> None:
    names = [name for name, _ in _rows()]
    assert len(set(names)) == len(names)
    assert Counter(name[:2] for name in names if not name.startswith("EC")) == _COUNTS
