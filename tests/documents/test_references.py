"""References, schemas and manual pages are those of the code: `make docs` writes them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

import agent.transport
from agent.attestation.plugins import known_attestors
from agent.config.settings import LimitSettings
from agent.service.process import DESCRIPTORS_PER_CONNECTION
from attestors.api import Selector
from attestors.builtin import BUILTIN
from attestors.lib.engine import ContainerAnswer
from deploy.reference import facts
from deploy.reference.__main__ import ROOT, files
from deploy.reference.roff import pages
from tests.support.cli import vouchd

DESCRIPTOR_TEXTS = (
    "agent/config/settings.py",
    "config/agent.example.yaml",
    "deploy/systemd/vouchd.service",
    "docs/architecture.md",
    "docs/reference/metrics.md",
)
POD_LISTS = sorted((ROOT / "tests/vectors/pods").glob("*.yaml"))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run `make docs`"


def test_numbers_are_numbers_in_the_schema() -> None:
    schema = json.loads((ROOT / "config/schema/agent.schema.json").read_text())
    limits = schema["$defs"]["LimitSettings"]["properties"]
    assert limits["connections"]["default"] == 4000
    assert limits["requests_per_second"]["default"] == 500
    assert schema["properties"]["limits"]["default"]["connections"] == 4000
    assert schema["properties"]["socket_mode"]["default"] == "0666"


def test_numbers_are_numbers_in_the_manual() -> None:
    manual = pages()["vouchd-agent.yaml.5"].replace("\\", "")
    assert re.search(r"^\.B limits\.connections\n.*Default: 4000\.$", manual, re.MULTILINE)
    assert re.search(r"^\.B limits\.requests_per_second\n.*Default: 500\.$", manual, re.MULTILINE)
    assert re.search(r'^\.B socket_mode\n.*Default: "0666"\.$', manual, re.MULTILINE)


def test_configuration_reference_has_the_options_of_every_attestor() -> None:
    names = {section.name for section in facts.configuration()}
    assert {f"attestors.{name}" for name in BUILTIN} <= names
    assert "attestors.k8s.kubelet" in names


def test_texts_name_the_descriptors_of_a_connection() -> None:
    word = {1: "one", 2: "two", 3: "three", 4: "four"}[DESCRIPTORS_PER_CONNECTION]
    for name in DESCRIPTOR_TEXTS:
        found = re.findall(r"(\w+) descriptors", (ROOT / name).read_text(encoding="utf-8"))
        assert {each.lower() for each in found} & {"one", "two", "three", "four"} == {word}, name


def test_unit_has_descriptors_for_eight_times_the_default_connections() -> None:
    unit = (ROOT / "deploy/systemd/vouchd.service").read_text(encoding="utf-8")
    limit = re.search(r"eight times the default limits.connections.\nLimitNOFILE=(\d+)\n", unit)
    assert limit is not None
    needed = LimitSettings().connections * DESCRIPTORS_PER_CONNECTION
    assert int(limit[1]) // needed == 8


def test_transport_names_each_of_its_modules() -> None:
    named = set(re.findall(r"`(\w+)`", str(agent.transport.__doc__)))
    modules = {path.stem for path in (ROOT / "agent/transport").glob("*.py")} - {"__init__"}
    assert modules <= named, modules - named


def test_every_command_is_in_the_manual() -> None:
    manual = pages()["vouchd.1"].replace("\\", "")
    for command in facts.all_commands():
        assert command.usage == "vouchd [OPTIONS] COMMAND [ARGS]..." or command.usage in manual


@pytest.mark.parametrize("name", BUILTIN)
def test_table_of_selectors_is_of_its_attestor(name: str) -> None:
    kinds = [Selector.parse(each.example) for each in facts.selectors(name)]
    assert {each.type for each in kinds} == {known_attestors()[name].name}
    assert len({each.kind for each in kinds}) == len(kinds)


def documented(name: str) -> set[str]:
    """The kinds in the table of an attestor."""
    return {Selector.parse(each.example).kind for each in facts.selectors(name)}


def test_table_of_unix_selectors_has_the_kinds_of_the_attestor(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("trust_domain: example.org\nentries: [none.yaml]\n")
    (tmp_path / "none.yaml").write_text("entries: []\n")
    found = vouchd("entries", "match", "-c", config, "--pid", os.getpid(), "--output", "json")
    kinds = {Selector.parse(each).kind for each in json.loads(found.stdout)["selectors"]}
    assert {"uid", "gid", "path"} <= kinds <= documented("unix")


def test_table_of_docker_selectors_has_the_kinds_of_the_attestor() -> None:
    answer = ContainerAnswer.model_validate(
        {
            "Id": "0" * 64,
            "Name": "/web",
            "Image": "sha256:" + "0" * 64,
            "State": {"Running": True, "Pid": 1},
            "Config": {
                "Image": "nginx",
                "Env": ["MODE=fast"],
                "Labels": {
                    "com.docker.compose.project": "shop",
                    "com.docker.compose.service": "web",
                },
            },
        }
    )
    kinds = {Selector("docker", fact).kind.partition(":")[0] for fact in answer.facts}
    assert kinds == kinds_alone("docker") - {"engine"}
    assert kinds_alone("docker") - {"engine"} == kinds_alone("podman-rootless")


def kinds_alone(name: str) -> set[str]:
    """The kinds in the table of an attestor, without user IDs and names of variables."""
    return {re.sub(r"^[0-9]+:|:.*$", "", kind) for kind in documented(name)}


def test_table_of_k8s_selectors_has_the_kinds_of_the_attestor() -> None:
    vectors = [yaml.safe_load(path.read_text()) for path in POD_LISTS]
    found = {fact for vector in vectors for fact in vector.get("facts") or ()}
    assert {Selector("k8s", fact).kind for fact in found} == documented("k8s")
