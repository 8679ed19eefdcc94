"""The `podman-rootless` attestor: containers that users run with Podman of their own.

    podman-rootless:<uid>:<value as of the docker attestor>
    podman-rootless:1000:image_id:docker.io/library/nginx:1.29

Everything in it is the word of that user, who could run another program in the engine's place: an
entry that asks for such a selector trusts user 1000 with its identity. That is why the user's ID is
in every selector, why these have a type of their own, and why it has to be switched on by name.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field, field_validator

from attestors.api import AttestorError, Findings, Options, Selector, SelectorKind
from attestors.lib.cgroups import Engine
from attestors.lib.containers import ASKING_SECONDS, REUSE_SECONDS, Containers
from attestors.lib.engine import EngineClient
from attestors.lib.models import AbsolutePath
from attestors.lib.once import SharedWork
from attestors.lib.processes import locate_workload, own_cgroup, started

if TYPE_CHECKING:
    from attestors.api import AttestorContext, WorkloadRef
    from attestors.lib.cgroups import Container


# With the cgroupfs driver the name of a user's container is its ID alone.
_PODMANS = frozenset({Engine.PODMAN, Engine.UNKNOWN})

_USER = "the word of user 1000"


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
            "it was made with this environment variable",
            _USER,
        ),
        SelectorKind(
            "podman-rootless:1000:image_id:docker.io/library/nginx:1.29",
            "it was made from an image of this name",
            _USER,
        ),
        SelectorKind(
            "podman-rootless:1000:image_config_digest:sha256:<64 hex digits>",
            "it was made from this very image",
            _USER,
        ),
        SelectorKind("podman-rootless:1000:container_name:web", "it has this name now", _USER),
        SelectorKind(
            "podman-rootless:1000:compose_project:shop", "Compose made it for this project", _USER
        ),
        SelectorKind(
            "podman-rootless:1000:compose_service:web", "Compose made it for this service", _USER
        ),
    )
    Options: ClassVar[type[BaseModel]] = RootlessOptions
    timeout: ClassVar[float] = ASKING_SECONDS
    reuse_seconds: ClassVar[float] = REUSE_SECONDS
    reuse_across_connections: ClassVar[bool] = False

    def __init__(self, options: RootlessOptions, _context: AttestorContext) -> None:
        self._options = options
        self._own_cgroup = own_cgroup()
        self._asking: SharedWork[tuple[Container, int], frozenset[str] | None] = SharedWork()

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        located = locate_workload(workload, self._own_cgroup)
        container = located.container
        if container is None or container.owner_uid is None or container.engine not in _PODMANS:
            return Findings(notes=located.notes)
        owner, start = container.owner_uid, started(workload)
        facts = await self._asking.get(
            (container, start), lambda: self._ask(owner, container, start)
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

    async def _ask(self, owner: int, container: Container, start: int) -> frozenset[str] | None:
        path = self._options.socket.replace("{uid}", str(owner))
        _check_owner(path, owner)
        # Nothing is kept and no events are followed: that user could send them without end.
        engine = Containers(EngineClient(path), self._own_cgroup, follow=False)
        try:
            return await engine.facts(container, start)
        finally:
            await engine.close()


def _check_owner(path: str, owner: int) -> None:
    try:
        status = Path(path).lstat()
    except PermissionError as error:
        raise AttestorError(f"{path} cannot be looked at: the agent has to be root") from error
    except OSError as error:
        raise AttestorError(
            f"the Podman of user {owner} has no socket at {path} ({error.strerror}): "
            "let that user enable podman.socket"
        ) from error
    if status.st_uid != owner or not stat.S_ISSOCK(status.st_mode):
        raise AttestorError(f"{path} is not a socket of user {owner}'s")
