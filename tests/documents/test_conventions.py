"""Documents keep their promises: commands are run, links lead somewhere, examples are valid."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import pytest
import yaml

from agent.attestation.plugins import known_options
from agent.config.settings import parse_settings
from agent.config.yaml_document import Source
from agent.entries.schema import parse_entries
from agent.spiffe.ids import TrustDomain
from tests.support.agent import REPOSITORY
from tests.support.documents import AS_USER, IN_MACHINE, Block, blocks, documents, missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PERFORMANCE = REPOSITORY / "docs/performance.md"
REFERENCES = REPOSITORY / "docs/reference"
README_BYTES = 9000
TESTS = sorted((REPOSITORY / "tests").rglob("test_*.py"))
MOST_SKIPPED = 6
"""Blocks of commands that no test runs. Each has its reason beside it."""
NO_COMMANDS = {"yaml", "json", "text", "ini", "go", "python", "toml"}
FOREIGN_KEYS = {"apiVersion", "services"}
"""Of Kubernetes and Compose."""

_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")
_CODE = re.compile(r"^ *```.*?^ *```\s*?$", re.MULTILINE | re.DOTALL)


def all_blocks(files: Iterable[Path]) -> Iterator[Block]:
    for document in files:
        yield from blocks(document)


def with_commands() -> list[Path]:
    """The documents whose commands a reader types."""
    walks = {REPOSITORY / name for name in AS_USER}
    return sorted({*walks, *(REPOSITORY / "docs/how-to").glob("*.md"), PERFORMANCE})


def test_each_command_block_is_run_or_has_a_reason() -> None:
    run = {REPOSITORY / name for name in (*AS_USER, *IN_MACHINE)}
    skipped = []
    for block in all_blocks(with_commands()):
        if block.language == "console":
            skipped += [block.place] if "not run" in block.directives else []
            others = {"not run", "run by"} & block.directives.keys()
            assert others or block.document in run, f"{block.place}: no test runs this"
            if other := block.directives.get("run by"):
                assert _runs(REPOSITORY / other, block.document), f"{block.place}: not by {other}"
    assert len(skipped) <= MOST_SKIPPED, skipped


def _runs(file: Path, document: Path) -> bool:
    """Return whether a file of tests names the document, or a test that does imports the file."""
    module = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
    users = [each for each in TESTS if f"from {module} import" in each.read_text()]
    return file.is_file() and any(document.name in each.read_text() for each in (file, *users))


def test_run_by_names_a_file_that_runs_the_document() -> None:
    containers = REPOSITORY / "docs/how-to/containers.md"
    assert _runs(REPOSITORY / "tests/system/test_container_image.py", containers)
    assert not _runs(REPOSITORY / "tests/support/clone.py", containers)
    assert not _runs(REPOSITORY / "tests/no_such_file.py", containers)


def test_commands_stand_in_console_blocks_only() -> None:
    for block in all_blocks(with_commands()):
        assert block.language in {"console", *NO_COMMANDS}, f"{block.place}: {block.language!r}"


def test_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_bytes()) <= README_BYTES


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in _LINK.findall(_CODE.sub("", document.read_text())):
        file = document.parent / target if target else document
        assert file.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{document.name}: {target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """The anchors of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", _CODE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


EXAMPLES = [
    block
    for block in all_blocks([*with_commands(), *sorted(REFERENCES.glob("*.md"))])
    if block.language == "yaml"
]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.place)
def test_examples_are_valid_for_the_agent(block: Block) -> None:
    text = "\n".join(block.lines)
    keys = set(yaml.safe_load(text))
    if keys == {"entries"}:
        source = Source(name=block.place, content=text.encode())
        parse_entries([source], TrustDomain("example.org"), frozenset(known_options()))
    elif not keys & FOREIGN_KEYS:
        text = text if "trust_domain" in keys else f"trust_domain: example.org\n{text}"
        source = Source(name=block.place, content=text.encode())
        parse_settings(source, PurePath("/etc/vouchd"), known_options())


def test_kubernetes_commands_name_objects_of_the_manifest() -> None:
    manifest = list(yaml.safe_load_all((REPOSITORY / "deploy/kubernetes/agent.yaml").read_text()))
    names = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in manifest}
    for block in blocks(REPOSITORY / "docs/how-to/kubernetes.md"):
        for command in block.commands if block.language == "console" else ():
            words = command.text.split()
            assert words[0] == "kubectl"
            assert {word for word in words if word.startswith("daemonset/")} <= names
            if "--namespace" in words:
                assert f"namespace/{words[words.index('--namespace') + 1]}" in names
            assert all((REPOSITORY / word).exists() for word in words if "deploy/" in word)


def test_version_in_commands_is_the_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    for block in all_blocks(with_commands()):
        for found in re.findall(r"vouchd[_:]([0-9][0-9.]*[0-9])", "\n".join(block.lines)):
            assert found == version, block.place


@pytest.mark.parametrize(
    ("expected", "output", "lacking"),
    [
        (["a", "c"], "a\nb\nc", None),
        (["c", "a"], "a\nb\nc", "a"),
        (["id…x"], "spiffe  id     x", None),
        (["id…x"], "id\nx", "id…x"),
        (["a  b"], "a b", None),
    ],
)
def test_output_is_compared_in_order(expected: list[str], output: str, lacking: str | None) -> None:
    assert missing(expected, output) == lacking
