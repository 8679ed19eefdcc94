"""The kubelet's pod list: a parser that reads pod by pod, and a search by container.

A list of 5,000 pods is 50 MB of JSON. A parser that reads it at once holds the interpreter's lock
for a second. `PodReader` parses it in pieces, so that its caller can pause in between.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from attestors.api import AttestorError
from attestors.lib.models import Part, first_fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from attestors.lib.cgroups import Container

# etcd stores at most 1.5 MiB; JSON may be longer.
POD_BYTES = 4 << 20
_ITEMS = re.compile(r'"items"\s*:\s*(?:(?P<list>\[)|null)')
_SPACE = re.compile(r"\s*")
_STATIC_HASH = "kubernetes.io/config.hash"
_ENDED = frozenset({"Succeeded", "Failed"})


class _Owner(Part):
    kind: str
    name: str
    uid: str


class _Metadata(Part):
    name: str
    namespace: str
    uid: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owners: list[_Owner] | None = Field(default=None, alias="ownerReferences")


class _Spec(Part):
    service_account: str = Field(default="", alias="serviceAccountName")
    node_name: str = Field(default="", alias="nodeName")


class _ContainerStatus(Part):
    name: str
    image: str = ""
    image_id: str = Field(default="", alias="imageID")
    container_id: str = Field(default="", alias="containerID")
    """`containerd://ID`; empty before the container is created."""


class _Status(Part):
    phase: str = ""
    containers: list[_ContainerStatus] | None = Field(default=None, alias="containerStatuses")
    init: list[_ContainerStatus] | None = Field(default=None, alias="initContainerStatuses")
    ephemeral: list[_ContainerStatus] | None = Field(
        default=None, alias="ephemeralContainerStatuses"
    )


class _PodAnswer(Part):
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod as the kubelet describes it, with the facts about it and about each container."""

    uid: str
    static_hash: str
    facts: frozenset[str]
    containers: Mapping[str, frozenset[str]]
    ended: bool

    def has_uid(self, uid: str) -> bool:
        """Return whether a cgroup with this UID is the pod's; a static pod has its file's hash."""
        return uid in {self.uid, self.static_hash}


@dataclass(frozen=True, slots=True)
class PodList:
    """The pods of a node at one moment."""

    pods: tuple[Pod, ...]
    _by_container: Mapping[str, tuple[Pod, ...]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, tuple[Pod, ...]] = {}
        for pod in self.pods:
            for container_id in pod.containers:
                found[container_id] = (*found.get(container_id, ()), pod)
        object.__setattr__(self, "_by_container", found)

    def find(self, container: Container) -> frozenset[str] | None:
        """Return the facts about a container and its pod; None if it is not in the list.

        Raises:
            AttestorError: the kubelet and the cgroup name different pods.
        """
        pods = self._by_container.get(container.id, ())
        if not pods:
            return None
        if len(pods) > 1 or (container.pod_uid and not pods[0].has_uid(container.pod_uid)):
            raise AttestorError(
                f"the kubelet has container {container.id[:12]} in pod "
                f"{' and '.join(pod.uid for pod in pods)}, its cgroup says "
                f"{container.pod_uid or 'nothing'}"
            )
        return pods[0].facts | pods[0].containers[container.id]

    def has_ended(self, container: Container) -> bool:
        """Return whether the container's pod has ended: the container will not appear any more."""
        return any(pod.ended and pod.has_uid(container.pod_uid) for pod in self.pods)


class PodReader:
    """A parser of a pod list that comes in pieces of any size.

    Raises:
        AttestorError: from every method: this is no pod list.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="strict").decode
        self._json = json.JSONDecoder()
        self._text = ""
        self._in_list = False
        self._complete = False
        self._count = 0

    def feed(self, piece: bytes) -> Iterator[Pod]:
        """Parse a piece and yield the pods that it completes; take all of them before the next."""
        try:
            self._text += self._decode(piece)
        except UnicodeDecodeError as error:
            raise AttestorError("the pod list is not UTF-8") from error
        if not self._in_list and not self._complete:
            self._find_list()
        yield from self._pods()
        if len(self._text) > POD_BYTES and not self._complete:
            raise AttestorError(f"pod {self._count + 1} of the list is too long or no JSON")

    def close(self) -> None:
        """End the list."""
        if not self._complete:
            raise AttestorError(f"the pod list breaks off after {self._count} pods")

    def _find_list(self) -> None:
        match = _ITEMS.search(self._text)
        if match:
            self._in_list = match["list"] is not None
            self._complete = not self._in_list
            self._text = self._text[match.end() :]

    def _pods(self) -> Iterator[Pod]:
        place = 0
        while self._in_list:
            start = _skip_space(self._text, place)
            if self._text.startswith("]", start):
                self._in_list, self._complete = False, True
                break
            if self._count:
                if not self._text.startswith(",", start):
                    break  # incomplete, or an error that `close` reports
                start = _skip_space(self._text, start + 1)
            try:
                answer, end = self._json.raw_decode(self._text, start)
            except ValueError:
                break  # incomplete
            except RecursionError as error:
                raise AttestorError(f"pod {self._count + 1} of the list is too deep") from error
            self._count += 1
            yield self._pod(answer)
            place = end
        self._text = self._text[place:]

    def _pod(self, answer: object) -> Pod:
        try:
            return _to_pod(_PodAnswer.model_validate(answer))
        except ValidationError as error:
            reason = first_fault(error)
            raise AttestorError(f"pod {self._count} of the list: {reason}") from error


def _skip_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _to_pod(answer: _PodAnswer) -> Pod:
    status = answer.status
    kinds = {
        "container": status.containers or [],
        "init": status.init or [],
        "ephemeral": status.ephemeral or [],
    }
    return Pod(
        uid=answer.metadata.uid,
        static_hash=(answer.metadata.annotations or {}).get(_STATIC_HASH, answer.metadata.uid),
        facts=frozenset(_pod_facts(answer)),
        containers={
            each.container_id.partition("://")[2]: frozenset(_container_facts(kind, each))
            for kind, statuses in kinds.items()
            for each in statuses
            if each.container_id
        },
        ended=status.phase in _ENDED,
    )


def _pod_facts(answer: _PodAnswer) -> Iterator[str]:
    metadata, spec, status = answer.metadata, answer.spec, answer.status
    named = {
        "sa": spec.service_account,
        "ns": metadata.namespace,
        "node-name": spec.node_name,
        "pod-uid": metadata.uid,
        "pod-name": metadata.name,
    }
    yield from (f"{name}:{value}" for name, value in named.items() if value)
    yield from (f"pod-label:{name}:{value}" for name, value in (metadata.labels or {}).items())
    for owner in metadata.owners or ():
        yield f"pod-owner:{owner.kind}:{owner.name}"
        yield f"pod-owner-uid:{owner.kind}:{owner.uid}"
    yield from _images("pod-image", status.containers or ())
    yield from _images("pod-init-image", status.init or ())
    yield f"pod-image-count:{len(status.containers or ())}"
    yield f"pod-init-image-count:{len(status.init or ())}"


def _container_facts(kind: str, status: _ContainerStatus) -> Iterator[str]:
    yield f"container-name:{status.name}"
    yield f"container-id:{status.container_id.partition('://')[2]}"
    yield f"container-type:{kind}"
    yield from _images("container-image", [status])


def _images(name: str, statuses: Iterable[_ContainerStatus]) -> Iterator[str]:
    for status in statuses:
        yield from (f"{name}:{image}" for image in (status.image_id, status.image) if image)
