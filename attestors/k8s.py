"""The `k8s` attestor: the pod and container that a process is in.

Without the kubelet, what cgroups prove:

    k8s:pod-uid:<uid>            k8s:container-id:<64 hex digits>

With it, also what the kubelet knows of them:

    k8s:ns:<namespace>           k8s:sa:<service account>         k8s:node-name:<node>
    k8s:pod-name:<name>          k8s:pod-label:<name>:<value>
    k8s:pod-owner:<Kind>:<name>  k8s:pod-owner-uid:<Kind>:<uid>
    k8s:pod-image:<image>        k8s:pod-image-count:<number>     and pod-init-image likewise
    k8s:container-name:<name>    k8s:container-image:<image>
    k8s:container-type:container, init, or ephemeral

A caller whose container is not in the kubelet's list yet waits for it, but not longer than
`wait_seconds`. A process in no pod is answered without asking anybody.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from attestors._cgroups import Engine
from attestors._kubelet import ANSWER_SECONDS, Kubelet, PodLists
from attestors._processes import locate_workload, own_cgroup
from attestors.api import AttestorError, Findings, Options, Selector

if TYPE_CHECKING:
    from attestors._cgroups import Container
    from attestors.api import AttestorContext, WorkloadRef

_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
WAIT_SECONDS_MAX = 20.0
# What the kubelet said is believed this long.
FRESH_SECONDS = 5.0


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not an absolute path")
    return path


_Path = Annotated[str, AfterValidator(_absolute)]
_Port = Annotated[int, Field(ge=1, le=65535)]


class KubeletOptions(Options):
    """How to reach the kubelet."""

    node_name: str | None = Field(
        default=None, min_length=1, description="The node's name, for which its certificate is."
    )
    node_name_env: str | None = Field(
        default=None, min_length=1, description="The environment variable that holds node_name."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Where to connect to.")
    port: _Port = Field(default=10250, description="The kubelet's secure port.")
    read_only_port: _Port | None = Field(
        default=None, description="Ask this port, without TLS: only where nobody else can bind it."
    )
    ca_file: _Path | None = Field(
        default=f"{_ACCOUNT}/ca.crt", description="Who signed the kubelet's certificate."
    )
    token_file: _Path | None = Field(default=f"{_ACCOUNT}/token", description="A bearer token.")
    certificate_file: _Path | None = Field(
        default=None, description="A client certificate, instead of a token."
    )
    key_file: _Path | None = Field(default=None, description="Its key.")
    wait_seconds: float = Field(
        default=5.0,
        ge=0,
        le=WAIT_SECONDS_MAX,
        description="How long a caller waits for its container to appear.",
    )

    @property
    def url(self) -> str:
        """What to ask."""
        if self.read_only_port is not None:
            return f"http://{self.host}:{self.read_only_port}/pods"
        return f"https://{self.host}:{self.port}/pods"

    @property
    def server_name(self) -> str | None:
        """The name that the kubelet's certificate must have; None without TLS."""
        if self.read_only_port is not None:
            return None
        return self.node_name or os.environ.get(self.node_name_env or "")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together: give both or none")
        if self.read_only_port is None and (self.node_name is None) == (self.node_name_env is None):
            raise ValueError(
                "give node_name or node_name_env: the certificate must be for somebody"
            )
        return self


def _off(value: object) -> object:
    # YAML 1.1 reads `off` as false.
    return False if value == "off" else value


class K8sOptions(Options):
    """Options of the `k8s` attestor."""

    kubelet: Annotated[Literal[False] | KubeletOptions, BeforeValidator(_off)] = Field(
        default=False,
        description="off: what cgroups prove, pod-uid and container-id. Else how to reach it.",
    )


class K8sAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "k8s"
    Options: ClassVar[type[BaseModel]] = K8sOptions
    # The longest wait, and the fetch that it ends with.
    timeout: ClassVar[float] = WAIT_SECONDS_MAX + ANSWER_SECONDS
    reuse_seconds: ClassVar[float] = FRESH_SECONDS

    def __init__(self, options: K8sOptions, _context: AttestorContext) -> None:
        self._own_cgroup = own_cgroup()
        self._options = options.kubelet
        self._lists: PodLists | None = None
        if isinstance(options.kubelet, KubeletOptions):
            if options.kubelet.read_only_port is None and not options.kubelet.server_name:
                raise AttestorError(f"${options.kubelet.node_name_env} is not set: the node's name")
            self._lists = PodLists(Kubelet(options.kubelet))

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        located = locate_workload(workload, self._own_cgroup)
        container = located.container
        if container is None or container.owner_uid is not None or not _may_be_a_pods(container):
            return Findings(notes=located.notes)
        proved = _proved(container)
        if self._lists is None:
            return self._findings(proved, located.notes)
        try:
            facts = await self._ask(container, self._lists)
        except AttestorError as error:
            return self._findings(proved, located.notes, pending=(str(error),))
        if facts is None:
            note = f"the pod of container {container.id[:12]} has ended, by the kubelet's word"
            return self._findings(proved, (*located.notes, note))
        return self._findings(facts, located.notes)

    async def close(self) -> None:
        """See Attestor.close."""
        if self._lists is not None:
            await self._lists.close()

    async def _ask(self, container: Container, lists: PodLists) -> frozenset[str] | None:
        """What the kubelet says of the container; None if it will never know it."""
        assert isinstance(self._options, KubeletOptions)  # noqa: S101 - then there are lists
        loop = asyncio.get_running_loop()
        now = loop.time()
        until, moment = now + self._options.wait_seconds, now - FRESH_SECONDS
        while True:
            pods = await lists.since(moment)
            facts = pods.find(container)
            if facts is not None:
                return facts
            if pods.has_ended(container):
                return None
            moment = loop.time()
            if moment >= until:
                raise AttestorError(f"the kubelet does not list container {container.id[:12]} yet")

    def _findings(
        self, facts: frozenset[str], notes: tuple[str, ...], pending: tuple[str, ...] = ()
    ) -> Findings:
        selectors = frozenset(Selector(self.name, fact) for fact in facts)
        return Findings(selectors, notes, pending)


def _may_be_a_pods(container: Container) -> bool:
    """From within a cgroup namespace the pod's part of the path is not always seen."""
    hidden = any(path.startswith("/..") for _hierarchy, path in container.cgroups)
    return bool(container.pod_uid) or (hidden and container.engine is not Engine.PODMAN)


def _proved(container: Container) -> frozenset[str]:
    """What the cgroup alone proves, of a pod that it names."""
    if not container.pod_uid:
        return frozenset()
    return frozenset({f"pod-uid:{container.pod_uid}", f"container-id:{container.id}"})
