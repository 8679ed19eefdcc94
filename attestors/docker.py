"""The `docker` attestor: the process's container, as described by Docker or root's Podman.

    docker:label:<name>:<value>         docker:env:<NAME>=<value>
    docker:image_id:<name of the image at creation, such as nginx:1.29>
    docker:image_config_digest:sha256:<64 hex digits>
    docker:container_name:<name>        docker:engine:docker, docker:engine:podman
    docker:compose_project:<name>       docker:compose_service:<name>

The attestor asks only engines that root runs; `podman-rootless` asks those of other users. It asks
no engine about a process outside a container, or in a container of another kind of engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field

from attestors.api import Findings, Options, Selector, SelectorKind
from attestors.lib.cgroups import Engine
from attestors.lib.containers import ASKING_SECONDS, REUSE_SECONDS, Containers
from attestors.lib.models import AbsolutePath
from attestors.lib.processes import locate_workload, own_cgroup, start_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestors.api import AttestorContext, WorkloadRef
    from attestors.lib.cgroups import Container

# These engines do not serve the Docker Engine API.
_OTHER_ENGINES = frozenset({Engine.CONTAINERD, Engine.CRIO, Engine.FARGATE})

_BASIS = "the engine, and the cgroup"


class DockerOptions(Options):
    """Options of the `docker` attestor."""

    socket: AbsolutePath = Field(default="/var/run/docker.sock", description="Docker's socket.")
    podman_socket: AbsolutePath = Field(
        default="/run/podman/podman.sock", description="The socket of root's Podman."
    )


class DockerAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "docker"
    selectors: ClassVar[tuple[SelectorKind, ...]] = (
        SelectorKind("docker:label:tier:front", "the container has this label", _BASIS),
        SelectorKind(
            "docker:env:MODE=fast", "it was created with this environment variable", _BASIS
        ),
        SelectorKind(
            "docker:image_id:nginx:1.29", "it was created from an image of this name", _BASIS
        ),
        SelectorKind(
            "docker:image_config_digest:sha256:<64 hex digits>",
            "it was created from exactly this image",
            _BASIS,
        ),
        SelectorKind("docker:container_name:web", "it has this name now", _BASIS),
        SelectorKind("docker:compose_project:shop", "Compose created it for this project", _BASIS),
        SelectorKind("docker:compose_service:web", "Compose created it for this service", _BASIS),
        SelectorKind(
            "docker:engine:docker", "it belongs to this engine, `docker` or `podman`", _BASIS
        ),
    )
    Options: ClassVar[type[BaseModel]] = DockerOptions
    timeout: ClassVar[float] = ASKING_SECONDS
    reuse_seconds: ClassVar[float] = REUSE_SECONDS
    reuse_across_connections: ClassVar[bool] = False

    def __init__(
        self,
        options: DockerOptions,
        _context: AttestorContext,
        containers: Callable[[str, bytes], Containers] = Containers.of,
    ) -> None:
        self._own_cgroup = own_cgroup()
        self._docker = containers(options.socket, self._own_cgroup)
        self._podman = containers(options.podman_socket, self._own_cgroup)

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        located = locate_workload(workload, self._own_cgroup)
        container = located.container
        if container is None or container.engine in _OTHER_ENGINES:
            return Findings(notes=located.notes)
        if container.owner_uid is not None:
            note = f"no docker selectors: user {container.owner_uid} runs this container's engine"
            return Findings(notes=(*located.notes, note))
        facts = await self._facts(container, start_time(workload))
        if facts is None:
            note = f"no docker selectors: no engine knows the container {container.id[:12]}"
            return Findings(notes=(*located.notes, note))
        return Findings(frozenset(Selector(self.name, fact) for fact in facts), located.notes)

    async def close(self) -> None:
        """See Attestor.close."""
        try:
            await self._docker.close()
        finally:
            await self._podman.close()

    async def _facts(self, container: Container, started: int) -> frozenset[str] | None:
        if container.engine is Engine.PODMAN:
            facts, name = await self._podman.facts(container, started), "podman"
        else:
            facts, name = await self._docker.facts(container, started), "docker"
        return None if facts is None else facts | {f"engine:{name}"}
