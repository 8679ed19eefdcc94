"""The `docker` attestor: the container that a process is in, as Docker or Podman describes it.

    docker:label:<name>:<value>         docker:env:<NAME>=<value>
    docker:image_id:<what the image was called at creation, such as nginx:1.29>
    docker:image_config_digest:sha256:<64 hex digits>
    docker:container_name:<name>        docker:engine:docker, docker:engine:podman
    docker:compose_project:<name>       docker:compose_service:<name>

Only engines of root's are asked: `podman-rootless` is the attestor for the others. A process in no
container, or in one of another kind of engine, is answered without asking anybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field

from attestors.api import Findings, Options, Selector, SelectorKind
from attestors.lib.cgroups import Engine
from attestors.lib.containers import ASKING_SECONDS, REUSE_SECONDS, Containers
from attestors.lib.engine import EngineClient
from attestors.lib.models import AbsolutePath
from attestors.lib.processes import locate_workload, own_cgroup, started

if TYPE_CHECKING:
    from attestors.api import AttestorContext, WorkloadRef
    from attestors.lib.cgroups import Container

# Their engines do not speak this protocol.
_OTHERS = frozenset({Engine.CONTAINERD, Engine.CRIO, Engine.FARGATE})

_ENGINE = "the engine, and the cgroup"


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
        SelectorKind("docker:label:tier:front", "the container has this label", _ENGINE),
        SelectorKind("docker:env:MODE=fast", "it was made with this environment variable", _ENGINE),
        SelectorKind(
            "docker:image_id:nginx:1.29", "it was made from an image of this name", _ENGINE
        ),
        SelectorKind(
            "docker:image_config_digest:sha256:<64 hex digits>",
            "it was made from this very image",
            _ENGINE,
        ),
        SelectorKind("docker:container_name:web", "it has this name now", _ENGINE),
        SelectorKind("docker:compose_project:shop", "Compose made it for this project", _ENGINE),
        SelectorKind("docker:compose_service:web", "Compose made it for this service", _ENGINE),
        SelectorKind(
            "docker:engine:docker", "it belongs to this engine, `docker` or `podman`", _ENGINE
        ),
    )
    Options: ClassVar[type[BaseModel]] = DockerOptions
    timeout: ClassVar[float] = ASKING_SECONDS
    reuse_seconds: ClassVar[float] = REUSE_SECONDS
    reuse_across_connections: ClassVar[bool] = False

    def __init__(self, options: DockerOptions, _context: AttestorContext) -> None:
        self._own_cgroup = own_cgroup()
        self._docker = Containers(EngineClient(options.socket), self._own_cgroup)
        self._podman = Containers(EngineClient(options.podman_socket), self._own_cgroup)

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        located = locate_workload(workload, self._own_cgroup)
        container = located.container
        if container is None or container.engine in _OTHERS:
            return Findings(notes=located.notes)
        if container.owner_uid is not None:
            note = f"no docker selectors: user {container.owner_uid} runs this container's engine"
            return Findings(notes=(*located.notes, note))
        facts = await self._facts(container, started(workload))
        if facts is None:
            note = f"no docker selectors: no engine knows the container {container.id[:12]}"
            return Findings(notes=(*located.notes, note))
        return Findings(frozenset(Selector(self.name, fact) for fact in facts), located.notes)

    async def close(self) -> None:
        """See Attestor.close."""
        await self._docker.close()
        await self._podman.close()

    async def _facts(self, container: Container, start: int) -> frozenset[str] | None:
        is_podmans = container.engine is Engine.PODMAN
        engine = self._podman if is_podmans else self._docker
        facts = await engine.facts(container, start)
        return None if facts is None else facts | {f"engine:{'podman' if is_podmans else 'docker'}"}
