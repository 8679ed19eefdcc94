"""Containers by cgroup: each layout of the field, and the forgeries of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from attestors.lib.cgroups import CgroupError, Container, Engine, locate

VECTORS = sorted((Path(__file__).parents[3] / "vectors" / "cgroups").glob("*.yaml"))
A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_layout_yields_its_container(path: Path) -> None:
    vector = yaml.safe_load(path.read_text())
    text, own = vector["cgroup"].encode(), vector.get("own", "").encode()
    if says := vector.get("refused"):
        with pytest.raises(CgroupError, match=says):
            locate(text, own)
        return
    expected: dict[str, Any] | None = vector["container"]
    located = locate(text, own)
    if expected is None:
        assert located.container is None
        return
    assert len(located.notes) == expected.pop("notes", 0)
    found = located.container
    assert found is not None
    place = expected.pop("place", None)
    assert place is None or {path for _, path in found.cgroups} == {place}
    assert (found.id, found.engine, found.pod_uid, found.owner_uid) == (
        expected.pop("id"),
        expected.pop("engine", ""),
        expected.pop("pod_uid", ""),
        expected.pop("owner_uid", None),
    )
    assert not expected


def test_same_container_has_the_same_directory() -> None:
    init = container_in(f"0::/system.slice/docker-{A}.scope/init.scope")
    inside = container_in(f"0::/system.slice/docker-{A}.scope/system.slice/cron.service")
    elsewhere = container_in(f"0::/other.slice/docker-{A}.scope")
    assert init.is_same(inside)
    assert not init.is_same(elsewhere)
    assert not init.is_same(container_in(f"0::/system.slice/docker-{B}.scope"))
    assert not init.is_same(None)


def test_comparison_ignores_a_hierarchy_of_one_process_only() -> None:
    one = container_in(f"2:cpu:/docker/{A}\n0::/")
    assert one.is_same(container_in(f"3:pids:/x\n2:cpu:/docker/{A}"))
    assert not one.is_same(container_in(f"3:pids:/docker/{A}"))


def test_skipped_line_is_quoted_without_control_characters() -> None:
    (note,) = locate(b"\x1b[2J nonsense\n").notes
    assert "'\\x1b[2J nonsense'" in note


@pytest.mark.parametrize("missing", [{"id": ""}, {"cgroups": frozenset()}])
def test_container_without_id_or_cgroup_is_refused(missing: dict[str, Any]) -> None:
    good: dict[str, Any] = {"id": A, "cgroups": frozenset({("", "/x")}), "engine": Engine.DOCKER}
    with pytest.raises(ValueError, match="has an ID and a cgroup"):
        Container(**{**good, **missing})


def container_in(text: str) -> Container:
    found = locate(text.encode()).container
    assert found is not None
    return found
