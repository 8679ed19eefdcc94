"""The table of attestors: the built-in ones, and those of installed packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from attestors.api import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from collections.abc import Mapping

BUILTIN = {
    "unix": "attestors.unix:UnixAttestor",
    "docker": "attestors.docker:DockerAttestor",
    "k8s": "attestors.k8s:K8sAttestor",
    "podman-rootless": "attestors.podman_rootless:RootlessPodmanAttestor",
    "systemd": "attestors.systemd:SystemdAttestor",
}


def available() -> Mapping[str, EntryPoint]:
    """Return the entry point of each installed attestor, without importing it.

    The import of all attestors would double the start time of the agent. A package cannot replace a
    built-in attestor.
    """
    offered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    builtin = {name: EntryPoint(name, place, ENTRY_POINT_GROUP) for name, place in BUILTIN.items()}
    return {**offered, **builtin}
