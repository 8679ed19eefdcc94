"""The `podman-rootless` attestor: containers of a user's own Podman.

    podman-rootless:<uid>:<value as of the docker attestor>
    podman-rootless:1000:image_id:docker.io/library/nginx:1.29

Each selector is a claim of that user: the user can run any program in place of the engine. An entry
with such a selector trusts this user with its identity. Therefore each selector contains the user
ID, these selectors have a type of their own, and the attestor is off by default.
"""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field, field_validator

from attestors.api import AttestorError, Findings, Options, Selector, SelectorKind
from attestors.lib.cgroups import Engine
from attestors.lib.containers import ASKING_SECONDS, REUSE_SECONDS, Containers
from attestors.lib.models import AbsolutePath
from attestors.lib.once import SharedWork
from attestors.lib.processes import locate_workload, own_cgroup, start_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestors.api import AttestorContext, WorkloadRef
    from attestors.lib.cgroups import Container


# Without events: a user's engine could send them without end.
_of_a_user = partial(Containers.of, follow=False)
# The cgroupfs driver names a user's container by its ID alone, which names no engine.
_PODMAN_ENGINES = frozenset({Engine.PODMAN, Engine.UNKNOWN})

_USER = "a claim of user 1000"


class RootlessOptions(Options):
    """Options of the `podman-rootless` attestor."""

    socket: AbsolutePath = Field(
        default="/run/user/{uid}/podman/podman.sock",
        description="A user's socket; {uid} stands for the user's ID.",
    )

    @field_validator("socket")
    @classmethod
    def _names_the_user(cls, value: str) -> str:
        if value.count("{uid}") != 1:
            raise ValueError("write {uid} once, where the user's ID belongs")
        return value


class RootlessPodmanAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "podman-rootless"
    selectors: ClassVar[tuple[SelectorKind, ...]] = (
        SelectorKind(
            "podman-rootless:1000:label:tier:front", "the container has this label", _USER
        ),
        SelectorKind(
            "podman-rootless:1000:env:MODE=fast",
            "it was created with this environment variable",
            _USER,
        ),
        SelectorKind(
            "podman-rootless:1000:image_id:docker.io/library/nginx:1.29",
            "it was created from an image of this name",
            _USER,
        ),
        SelectorKind(
            "podman-rootless:1000:image_config_digest:sha256:<64 hex digits>",
            "it was created from exactly this image",
            _USER,
        ),
        SelectorKind("podman-rootless:1000:container_name:web", "it has this name now", _USER),
        SelectorKind(
            "podman-rootless:1000:compose_project:shop",
            "Compose created it for this project",
            _USER,
        ),
        SelectorKind(
            "podman-rootless:1000:compose_service:web", "Compose created it for this service", _USER
        ),
    )
    Options: ClassVar[type[BaseModel]] = RootlessOptions
    timeout: ClassVar[float] = ASKING_SECONDS
    reuse_seconds: ClassVar[float] = REUSE_SECONDS
    reuse_across_connections: ClassVar[bool] = False

    def __init__(
        self,
        options: RootlessOptions,
        _context: AttestorContext,
        containers: Callable[[str, bytes], Containers] = _of_a_user,
    ) -> None:
        self._options = options
        self._containers = containers
        self._own_cgroup = own_cgroup()
        self._asking: SharedWork[tuple[Container, int], frozenset[str] | None] = SharedWork()

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        located = locate_workload(workload, self._own_cgroup)
        container = located.container
        if container is None or container.owner_uid is None:
            return Findings(notes=located.notes)
        if container.engine not in _PODMAN_ENGINES:
            return Findings(notes=located.notes)
        owner, started = container.owner_uid, start_time(workload)
        facts = await self._asking.get(
            (container, started), lambda: self._ask(owner, container, started)
        )
        if facts is None:
            note = f"no {self.name} selectors: user {owner}'s Podman does not know this container"
            return Findings(notes=(*located.notes, note))
        return Findings(
            frozenset(Selector(self.name, f"{owner}:{fact}") for fact in facts), located.notes
        )

    async def close(self) -> None:
        """See Attestor.close."""
        await self._asking.close()

    async def _ask(self, owner: int, container: Container, started: int) -> frozenset[str] | None:
        path = self._options.socket.replace("{uid}", str(owner))
        _check_owner(path, owner)
        engine = self._containers(path, self._own_cgroup)
        try:
            return await engine.facts(container, started)
        finally:
            await engine.close()


def _check_owner(path: str, owner: int) -> None:
    """Check that the path is a socket of this user.

    Raises:
        AttestorError: it is not.
    """
    try:
        status = Path(path).lstat()
    except PermissionError as error:
        raise AttestorError(f"no permission to look up {path}: run the agent as root") from error
    except OSError as error:
        raise AttestorError(
            f"the Podman of user {owner} has no socket at {path} ({error.strerror}): "
            "that user must enable podman.socket"
        ) from error
    if status.st_uid != owner or not stat.S_ISSOCK(status.st_mode):
        raise AttestorError(f"{path} is not a socket of user {owner}")
