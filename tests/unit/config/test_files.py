"""Reading files from a real disk: which are read, in which order, and why one cannot be."""

import os
from pathlib import Path, PurePath

import pytest

from agent.config.files import load_settings, read_entry_files, read_file
from agent.errors import ConfigError
from attestors.api import Options


def _names(*paths: PurePath) -> list[str]:
    return [Path(source.name).name for source in read_entry_files(paths)]


def _problems(*paths: PurePath) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        read_entry_files(paths)
    return [str(each) for each in refusal.value.problems]


def test_directory_is_read_in_name_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    names = ["10.yaml", "20.yaml", "30.yml", "9.yaml", "a.yaml", "b.yaml"]
    for name in sorted(names, reverse=True):
        (tmp_path / name).touch()
    for name in (".hidden.yaml", ".yaml", "30.yaml.bak", "notes.txt", "yaml"):
        (tmp_path / name).touch()
    assert _names(tmp_path) == names


def test_paths_are_read_in_the_order_given_whatever_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x.yaml").touch()
    (tmp_path / "second.conf").touch()
    assert _names(tmp_path / "second.conf", tmp_path / "d") == ["second.conf", "x.yaml"]


def test_empty_directory_and_no_path_give_no_files(tmp_path: Path) -> None:
    assert _names(tmp_path) == _names() == []


def test_link_is_followed_and_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "real").write_text("content")
    (tmp_path / "d/link.yaml").symlink_to(tmp_path / "real")
    [source] = read_entry_files([tmp_path / "d"])
    assert (source.name, source.content) == (f"{tmp_path}/d/link.yaml", b"content")


def test_every_unreadable_path_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d/fifo.yaml")
    (tmp_path / "d/link.yaml").symlink_to("nowhere")
    (tmp_path / "d.yaml").mkdir()
    (tmp_path / "d.yaml/inner.yaml").mkdir()
    (tmp_path / "good.yaml").touch()
    missing = tmp_path / "missing.yaml"
    assert _problems(missing, tmp_path / "d", tmp_path / "d.yaml", tmp_path / "good.yaml") == [
        f"{tmp_path}/d.yaml/inner.yaml:1:1: inner.yaml cannot be read: Is a directory",
        f"{tmp_path}/d/fifo.yaml:1:1: fifo.yaml is not a regular file",
        f"{tmp_path}/d/link.yaml:1:1: link.yaml cannot be read: No such file or directory",
        f"{missing}:1:1: missing.yaml cannot be read: No such file or directory",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_or_directory_without_permission_is_a_problem(tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.touch(mode=0)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    assert [each.partition(": ")[2] for each in _problems(secret, closed)] == [
        "closed cannot be read: Permission denied",
        "secret.yaml cannot be read: Permission denied",
    ]


def test_unreadable_directory_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above, for root."""

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert _problems(tmp_path)[0].endswith("cannot be read: Permission denied")


def test_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (1 << 20))
    assert len(read_file(path, max_bytes=1 << 20).content) == 1 << 20
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match=r"huge\.yaml:1:1: huge.yaml is larger than 1 MiB"):
        read_file(path, max_bytes=1 << 20)


def test_relative_paths_start_at_the_directory_of_the_settings_file(tmp_path: Path) -> None:
    """`..` of a linked directory is the parent of the link's target, as in the kernel."""
    real = tmp_path / "real/etc"
    real.mkdir(parents=True)
    (real / "agent.yaml").write_text("trust_domain: example.org\ndata_dir: ../data\n")
    (tmp_path / "link").symlink_to(real)
    settings = load_settings(tmp_path / "link/agent.yaml", {"unix": Options})
    assert settings.data_dir == tmp_path / "real/data"


def test_missing_settings_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.yaml:1:1: agent\.yaml cannot be read: No such"):
        load_settings(tmp_path / "agent.yaml", {})
