"""Files on a real disk: what is read, in which order, and what is said when it cannot be."""

import gc
import os
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any

import pytest

from agent.config import files
from agent.config.files import load_settings
from agent.entries import load
from agent.entries.load import load_entries
from agent.entries.schema import LoadedEntries, parse_entries
from agent.errors import ConfigError
from agent.spiffe.ids import TrustDomain
from attestors.api import Options

OWN = TrustDomain("example.org")


def _load(*paths: PurePath) -> LoadedEntries:
    return load_entries(paths, OWN, frozenset({"unix"}), max_svid_ttl=timedelta(hours=4))


def _ids(*paths: PurePath) -> list[str]:
    return [entry.id for entry in _load(*paths).entries.entries]


def _problems(*paths: PurePath) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        _load(*paths)
    return [str(each) for each in refusal.value.problems]


def _write(path: Path, name: str) -> Path:
    path.write_text(
        f"entries: [{{id: '{name}', spiffe_id: /{name}, selectors: [unix:uid:1]}}]",
        encoding="utf-8",
    )
    return path


def test_a_directory_is_read_by_name_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    names = ["10", "20", "30", "9", "a", "b", "c", "d"]
    for name in ("c", "20", "a", "9", "d", "30", "b", "10"):
        _write(tmp_path / f"{name}.{'yml' if name == '30' else 'yaml'}", name)
    for name in (".hidden.yaml", "30.yaml.bak", "notes.txt", "yaml"):
        _write(tmp_path / name, "no")
    assert _ids(tmp_path) == names


def test_paths_are_read_in_the_order_given_whatever_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    _write(tmp_path / "d/x.yaml", "x")
    second = _write(tmp_path / "second.conf", "second")
    assert _ids(second, tmp_path / "d") == ["second", "x"]


def test_an_empty_directory_and_no_path_at_all_hold_no_entries(tmp_path: Path) -> None:
    assert _ids(tmp_path) == _ids() == []


def test_a_link_to_a_file_is_followed_and_the_link_s_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/link.yaml").symlink_to(_write(tmp_path / "real", "real"))
    (entry,) = _load(tmp_path / "d").entries.entries
    assert entry.origin == f"{tmp_path}/d/link.yaml:1"


def test_every_unusable_path_is_named_together_with_the_mistakes_inside(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d/fifo.yaml")
    (tmp_path / "d.yaml").mkdir()
    (tmp_path / "d.yaml/inner.yaml").mkdir()
    (tmp_path / "bad.yaml").write_text("entries: 1")
    missing = tmp_path / "missing.yaml"
    found = _problems(missing, tmp_path / "d", tmp_path / "d.yaml", tmp_path / "bad.yaml")
    assert found == [
        f"{tmp_path}/bad.yaml:1:10: entries must be a list, not a number",
        f"{tmp_path}/d.yaml/inner.yaml:1:1: inner.yaml cannot be read: Is a directory",
        f"{tmp_path}/d/fifo.yaml:1:1: fifo.yaml is not a regular file",
        f"{missing}:1:1: missing.yaml cannot be read: No such file or directory",
    ]


def test_one_unusable_file_does_not_hide_the_others_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("nowhere")
    (tmp_path / "b.yaml").write_text("entries: 1")
    (tmp_path / "c.yaml").symlink_to("nowhere")
    assert [each.removeprefix(f"{tmp_path}/")[:10] for each in _problems(tmp_path)] == [
        "a.yaml:1:1",
        "b.yaml:1:1",
        "c.yaml:1:1",
    ]


def test_an_unusable_path_alone_is_refused(tmp_path: Path) -> None:
    good = _write(tmp_path / "good.yaml", "good")
    assert len(_problems(good, tmp_path / "missing")) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_or_directory_without_permission_is_named(tmp_path: Path) -> None:
    secret = _write(tmp_path / "secret.yaml", "x")
    secret.chmod(0)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    assert [each.partition(": ")[2] for each in _problems(secret, closed)] == [
        "closed cannot be read: Permission denied",
        "secret.yaml cannot be read: Permission denied",
    ]


def test_an_unreadable_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `without_permission`, for those who run the tests as root."""

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert _problems(tmp_path)[0].endswith("cannot be read: Permission denied")


def test_a_huge_file_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (1 << 20))
    assert _ids(path) == []
    path.write_bytes(b"#" * ((1 << 20) + 1))
    assert _problems(path) == [f"{path}:1:1: huge.yaml is larger than 1 MiB"]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_while_entries_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    enabled: bool,  # noqa: FBT001
) -> None:
    during: list[bool] = []
    parse = parse_entries

    def watch(*args: Any, **rules: Any) -> LoadedEntries:
        during.append(gc.isenabled())
        return parse(*args, **rules)

    monkeypatch.setattr(load, "parse_entries", watch)
    good = _write(tmp_path / "good.yaml", "good")
    (tmp_path / "bad.yaml").write_text("entries: 1")
    if not enabled:
        gc.disable()
    try:
        assert _ids(good) == ["good"]
        assert len(_problems(tmp_path / "bad.yaml")) == 1
        assert (during, gc.isenabled()) == ([False, False], enabled)
    finally:
        gc.enable()


# --- settings ----------------------------------------------------------------------------------
def test_relative_paths_start_at_the_directory_of_the_file(tmp_path: Path) -> None:
    """`..` of a linked directory is the parent of what it links to, as for the kernel."""
    real = tmp_path / "real/etc"
    real.mkdir(parents=True)
    (real / "agent.yaml").write_text("trust_domain: example.org\ndata_dir: ../data\n")
    (tmp_path / "link").symlink_to(real)
    settings = load_settings(tmp_path / "link/agent.yaml", {"unix": Options})
    assert settings.data_dir == tmp_path / "real/data"


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.yaml:1:1: agent\.yaml cannot be read: No such"):
        load_settings(tmp_path / "agent.yaml", {})
