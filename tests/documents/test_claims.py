"""Security claims name all attacks; decisions have one form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.agent import REPOSITORY
from tests.support.http2_floods import CLASSES

DECISIONS = sorted((REPOSITORY / "docs/decisions").glob("[0-9]*.md"))
PAGE_WORDS = 450
STATUS = r"(in force|decided, not built|replaced by \[?\d+)"


def test_the_claims_table_names_each_attack() -> None:
    text = (REPOSITORY / "docs/security.md").read_text()
    named = set(re.findall(r"attacks/(test_\w+\.py)", text))
    attacks = {path.name for path in (REPOSITORY / "tests/system/attacks").glob("test_*.py")}
    assert named == attacks


@pytest.mark.parametrize("attack", CLASSES, ids=list(CLASSES))
def test_the_table_of_http2_attacks_names_each_class(attack: str) -> None:
    text = (REPOSITORY / "docs/security.md").read_text()
    number, _, name = attack.rpartition(", ")
    assert f"`{name}`" in text
    assert not number.startswith("CVE") or number.split()[0] in text


@pytest.mark.parametrize("record", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_context_decision_and_consequences_on_one_page(record: Path) -> None:
    text = record.read_text()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert re.search(rf"^Status: {STATUS}\b", text, re.MULTILINE)
    assert len(text.split()) <= PAGE_WORDS


def test_the_index_lists_each_decision_with_its_title_and_status() -> None:
    index = (REPOSITORY / "docs/decisions/README.md").read_text()
    rows = re.findall(rf"^\| \[(.+)\]\((.+)\) \| {STATUS}", index, re.MULTILINE)
    assert [name for _, name, _ in rows] == [path.name for path in DECISIONS]
    for title, name, status in rows:
        text = (REPOSITORY / "docs/decisions" / name).read_text()
        assert text.startswith(f"# {title}\n")
        assert re.findall(rf"^Status: {STATUS}", text, re.MULTILINE) == [status]


def test_the_glossary_is_in_order() -> None:
    terms = re.findall(
        r"^\| ([^|]+?) \|", (REPOSITORY / "docs/glossary.md").read_text(), re.MULTILINE
    )
    terms = [
        term.lower().removesuffix(" (spiffe)") for term in terms if term not in {"term", "---"}
    ]
    assert terms == sorted(terms)
