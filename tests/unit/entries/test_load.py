"""Loading entries reports unreadable files and mistakes together, and pauses garbage collection."""

import gc
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any

import pytest

from agent.config.yaml_document import Source
from agent.entries import load
from agent.entries.load import load_entries, parse_by_settings
from agent.entries.schema import LoadedEntries, parse_entries
from agent.errors import ConfigError
from agent.spiffe.ids import TrustDomain
from tests.support.fakes import FakeClock
from tests.support.settings import settings


def _load(*paths: PurePath) -> LoadedEntries:
    rules = TrustDomain("example.org"), frozenset({"unix"})
    return load_entries(paths, *rules, max_svid_ttl=timedelta(hours=4))


def _problems(*paths: PurePath) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        _load(*paths)
    return [str(each) for each in refusal.value.problems]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text("entries: [{id: good, spiffe_id: /good, selectors: [unix:uid:1]}]")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text("entries: 1")
    return path


def test_entry_has_the_file_and_line_of_its_origin(good: Path) -> None:
    [entry] = _load(good.parent).entries.entries
    assert (entry.id, entry.origin) == ("good", f"{good}:1")


def test_unreadable_file_does_not_hide_the_mistakes_of_others(bad: Path) -> None:
    missing = bad.with_name("missing.yaml")
    assert _problems(missing, bad) == [
        f"{bad}:1:10: entries must be a list, not a number",
        f"{missing}:1:1: missing.yaml cannot be read: No such file or directory",
    ]


def test_one_unreadable_file_refuses_the_whole_set(good: Path) -> None:
    assert len(_problems(good, good.with_name("missing"))) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_paused_while_entries_are_parsed(
    good: Path,
    bad: Path,
    monkeypatch: pytest.MonkeyPatch,
    enabled: bool,  # noqa: FBT001
) -> None:
    during: list[bool] = []

    def watched(*args: Any, **rules: Any) -> LoadedEntries:
        during.append(gc.isenabled())
        return parse_entries(*args, **rules)

    monkeypatch.setattr(load, "parse_entries", watched)
    if not enabled:
        gc.disable()
    try:
        assert len(_load(good).entries.entries) == 1
        assert len(_problems(bad)) == 1
        assert (during, gc.isenabled()) == ([False, False], enabled)
    finally:
        gc.enable()


def test_entries_from_elsewhere_follow_the_rules_of_the_settings() -> None:
    """`vouchd entries diff` sends files: the settings bind them too."""
    text = "entries: [{id: a, spiffe_id: 'spiffe://other.org/a', selectors: ['unix:uid:1']}]"
    source = Source(name="new.yaml", content=text.encode())
    with pytest.raises(ConfigError, match=r"new\.yaml:1:.*other.org"):
        parse_by_settings([source], settings(), FakeClock())
