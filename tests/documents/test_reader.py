"""The reader of documents fails where a document says what is not so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documents import Reader, Terminal, blocks


def follow(directory: Path, text: str) -> int:
    """The number of commands that were run."""
    document = directory / "document.md"
    document.write_text(text)
    with Reader(lambda: Terminal(directory=directory)) as reader:
        return reader.follow(document)


def test_commands_share_a_shell_and_print_the_documented_output(tmp_path: Path) -> None:
    text = "```console\n$ NAME=one\n$ echo $NAME; echo two\none\ntwo\n```\n"
    assert follow(tmp_path, text) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```console\n$ echo one\ntwo\n```\n", "has no 'two'"),
        ("```console\n$ echo one; echo two\ntwo\none\n```\n", "has no 'one'"),
        ("```console\n$ false\n```\n", "exit code 1, documented is 0"),
        ("<!-- exit code: 1 -->\n```console\n$ true\n```\n", "exit code 0, documented is 1"),
        ("<!-- waits for: ready -->\n```console\n$ echo no\n```\n", "'ready' was not printed"),
        ("<!-- setup: false -->\n```console\n$ true\n```\n", "setup: false"),
        ("<!-- exitcode: 1 -->\n```console\n$ true\n```\n", "unknown directive"),
        ("<!-- exit code: 1 -->\nText.\n", "between a directive and its block"),
    ],
)
def test_false_claim_fails(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        follow(tmp_path, text)


def test_files_and_terminals(tmp_path: Path) -> None:
    text = (
        "<!-- file: made.txt -->\n```text\n$HOME stays\n```\n\n"
        "<!-- terminal: other -->\n<!-- waits for: ready -->\n"
        "```console\n$ NAME=two; echo ready; read -r line < made.fifo; echo $line\n```\n\n"
        '```console\n$ cat made.txt; echo "[$NAME]"\n$HOME stays\n[]\n'
        "$ echo pushed > made.fifo\n```\n\n"
        "<!-- terminal: other -->\n```console\npushed\n```\n"
    )
    text = f"<!-- setup: mkfifo made.fifo -->\n{text}"
    assert follow(tmp_path, text) == 3


def test_block_of_another_test_or_without_a_test_is_skipped(tmp_path: Path) -> None:
    text = "<!-- not run: why -->\n```console\n$ false\n```\n```yaml\na: b\n```\n"
    assert follow(tmp_path, text) == 0


def test_here_documents_and_continued_lines_are_one_command(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text("```console\n$ cat <<EOF\n$ x\nEOF\n$ echo a \\\n  b\na b\n```\n")
    [block] = blocks(document)
    assert [each.text for each in block.commands] == ["cat <<EOF\n$ x\nEOF", "echo a \\\n  b"]
    assert [each.expected for each in block.commands] == [(), ("a b",)]
