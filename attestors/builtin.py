"""The table of attestors: the built-in ones, and those that installed packages offer."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from attestors.api import ENTRY_POINT_GROUP
from attestors.docker import DockerAttestor
from attestors.k8s import K8sAttestor
from attestors.podman_rootless import RootlessPodmanAttestor
from attestors.systemd import SystemdAttestor
from attestors.unix import UnixAttestor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attestors.api import Attestor

BUILTIN: Mapping[str, type[Attestor]] = {
    "unix": UnixAttestor,
    "docker": DockerAttestor,
    "k8s": K8sAttestor,
    "podman-rootless": RootlessPodmanAttestor,
    "systemd": SystemdAttestor,
}


def available() -> dict[str, type[Attestor]]:
    """All attestors that `agent.yaml` may switch on, by name. A built-in name cannot be taken over.

    Raises:
        ImportError, AttributeError: an installed plug-in cannot be loaded.
    """
    offered = {
        point.name: point.load()
        for point in entry_points(group=ENTRY_POINT_GROUP)
        if point.name not in BUILTIN
    }
    return {**offered, **BUILTIN}
