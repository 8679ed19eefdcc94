"""Pod lists of several Kubernetes versions, in pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from attestors.lib.cgroups import Container, Engine
from attestors.lib.pods import Pod, PodList, PodReader
from tests.support.kubelet_server import pod

UID = "0e5f1c7e-61a3-4d43-9e7b-5f1f64b9a1c4"
ID, OTHER = "a" * 64, "b" * 64
# Written by the API reference of each version.
VECTORS = sorted((Path(__file__).parents[3] / "vectors" / "pods").glob("*.yaml"))


def read(text: bytes, size: int) -> list[Pod]:
    """Read a list in pieces of this size."""
    reader = PodReader()
    found = [each for at in range(0, len(text), size) for each in reader.feed(text[at : at + size])]
    reader.close()
    return found


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_list_of_each_version_yields_its_facts(path: Path) -> None:
    vector: dict[str, Any] = yaml.safe_load(path.read_text())
    container = Container(
        id=vector["container"],
        engine=Engine.UNKNOWN,
        cgroups=frozenset({("", "/x")}),
        pod_uid=vector["pod"],
    )
    text = vector["list"].encode()
    pods = PodList(tuple(read(text, len(text))))
    assert pods.find(container) == frozenset(vector["facts"])
    assert not pods.has_ended(container)


def test_pods_do_not_depend_on_the_size_of_the_pieces() -> None:
    pods = [pod("ä}", UID, app=ID), pod('b"]', None, x=OTHER)]
    text = json.dumps({"metadata": {}, "items": pods}, ensure_ascii=False).encode()

    whole = read(text, len(text))
    assert [each.uid for each in whole] == [each["metadata"]["uid"] for each in pods]
    assert all(read(text, size) == whole for size in (1, 2, 3, 7, 100))


@pytest.mark.parametrize("text", [b'{"items":null}', b'{"items": [ ] }'])
def test_empty_list_has_no_pods(text: bytes) -> None:
    reader = PodReader()
    assert list(reader.feed(text)) == []
    reader.close()
