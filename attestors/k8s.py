"""The `k8s` attestor: the process's pod and container.

The cgroup proves, without the kubelet:

    k8s:pod-uid:<uid>            k8s:container-id:<64 hex digits>

The kubelet adds:

    k8s:ns:<namespace>           k8s:sa:<service account>         k8s:node-name:<node>
    k8s:pod-name:<name>          k8s:pod-label:<name>:<value>
    k8s:pod-owner:<Kind>:<name>  k8s:pod-owner-uid:<Kind>:<uid>
    k8s:pod-image:<image>        k8s:pod-image-count:<number>     and pod-init-image likewise
    k8s:container-name:<name>    k8s:container-image:<image>
    k8s:container-type:container, init, or ephemeral

If the kubelet's list does not contain the container yet, the attestor waits for it, at most
`wait_seconds`. It does not ask the kubelet about a process outside a pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, Field

from attestors.api import AttestorError, Findings, Options, Selector, SelectorKind
from attestors.lib.cgroups import Engine
from attestors.lib.kubelet import FRESH_SECONDS, LONGEST_SECONDS, KubeletOptions, PodLists
from attestors.lib.processes import locate_workload, own_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestors.api import AttestorContext, WorkloadRef
    from attestors.lib.cgroups import Container

_CGROUP = "the cgroup"
_KUBELET = "the kubelet, about the container that the cgroup names"


def _off(value: object) -> object:
    if value is None:
        raise ValueError("write `off`, or how to reach the kubelet")
    # YAML 1.1 reads `off` as false.
    return None if value is False or value == "off" else value


class K8sOptions(Options):
    """Options of the `k8s` attestor."""

    kubelet: Annotated[KubeletOptions | None, BeforeValidator(_off)] = Field(
        default=None,
        description="off: only pod-uid and container-id. Else how to reach the kubelet.",
    )


class K8sAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "k8s"
    selectors: ClassVar[tuple[SelectorKind, ...]] = (
        SelectorKind("k8s:pod-uid:<uid>", "the pod has this UID", _CGROUP),
        SelectorKind("k8s:container-id:<64 hex digits>", "the container has this ID", _CGROUP),
        SelectorKind("k8s:ns:shop", "the pod is in this namespace", _KUBELET),
        SelectorKind("k8s:sa:web", "the pod runs as this service account", _KUBELET),
        SelectorKind("k8s:pod-name:web-7d-x", "the pod has this name", _KUBELET),
        SelectorKind("k8s:node-name:node-1", "the pod runs on this node", _KUBELET),
        SelectorKind("k8s:pod-label:app:web", "the pod has this label", _KUBELET),
        SelectorKind("k8s:pod-owner:ReplicaSet:web-7d", "the pod belongs to this object", _KUBELET),
        SelectorKind(
            "k8s:pod-owner-uid:ReplicaSet:<uid>",
            "the pod belongs to the object of this UID",
            _KUBELET,
        ),
        SelectorKind(
            "k8s:pod-image:<image>",
            "a container of the pod has this image, by name or ID",
            _KUBELET,
        ),
        SelectorKind("k8s:pod-image-count:2", "the pod has so many containers", _KUBELET),
        SelectorKind(
            "k8s:pod-init-image:<image>", "an init container of the pod has this image", _KUBELET
        ),
        SelectorKind("k8s:pod-init-image-count:1", "the pod has so many init containers", _KUBELET),
        SelectorKind("k8s:container-name:web", "the container has this name in the pod", _KUBELET),
        SelectorKind(
            "k8s:container-image:<image>", "the container has this image, by name or ID", _KUBELET
        ),
        SelectorKind(
            "k8s:container-type:container",
            "the container is `container`, `init` or `ephemeral`",
            _KUBELET,
        ),
    )
    Options: ClassVar[type[BaseModel]] = K8sOptions
    timeout: ClassVar[float] = LONGEST_SECONDS
    reuse_seconds: ClassVar[float] = FRESH_SECONDS
    reuse_across_connections: ClassVar[bool] = False

    def __init__(
        self,
        options: K8sOptions,
        _context: AttestorContext,
        lists: Callable[[KubeletOptions], PodLists] = PodLists,
    ) -> None:
        self._own_cgroup = own_cgroup()
        self._lists = lists(options.kubelet) if options.kubelet else None

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        located = locate_workload(workload, self._own_cgroup)
        container = located.container
        if container is None:
            return Findings(notes=located.notes)
        if container.owner_uid is not None or not _may_be_in_a_pod(container):
            note = (
                f"no k8s selectors: container {container.id[:12]} is not in the kubelet's cgroups"
            )
            return Findings(notes=(*located.notes, note))
        proved = _proved(container)
        if self._lists is None:
            return self._findings(proved, located.notes)
        try:
            facts = await self._lists.find(container)
        except AttestorError as error:
            return self._findings(proved, located.notes, pending=(str(error),))
        if facts is None:
            note = f"the kubelet says that the pod of container {container.id[:12]} has ended"
            return self._findings(proved, (*located.notes, note))
        return self._findings(facts, located.notes)

    async def close(self) -> None:
        """See Attestor.close."""
        if self._lists is not None:
            await self._lists.close()

    def _findings(
        self, facts: frozenset[str], notes: tuple[str, ...], pending: tuple[str, ...] = ()
    ) -> Findings:
        selectors = frozenset(Selector(self.name, fact) for fact in facts)
        return Findings(selectors, notes, pending)


def _may_be_in_a_pod(container: Container) -> bool:
    """Return whether the cgroup names a pod, or hides its parents.

    An agent in a cgroup namespace sees only the last part of the cgroup of a neighbour in its pod.
    """
    above = {part for _hierarchy, path in container.cgroups for part in path.split("/")[1:-1]}
    hidden = above == {".."} and container.engine is not Engine.PODMAN
    return bool(container.pod_uid) or hidden


def _proved(container: Container) -> frozenset[str]:
    """Return the facts that the cgroup alone proves."""
    if not container.pod_uid:
        return frozenset()
    return frozenset({f"pod-uid:{container.pod_uid}", f"container-id:{container.id}"})
