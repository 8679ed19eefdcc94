"""Facts for the reference of metrics: the registry, and the docstrings of label values."""

from __future__ import annotations

import ast
import inspect
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from agent import signals
from agent.kernel.account import Scope
from agent.limits.quotas import OverLimitError, Resource
from agent.telemetry.metrics import NEVER, Levels, Metrics, Words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from enum import StrEnum

_LABEL_OF_BUCKETS = "le"
# One series of each metric is enough to know its labels.
_LEVELS = Levels(
    ready=True,
    connections=0,
    streams={"FetchX509SVID": 0},
    svids={"x509": 0},
    svid_expiry=NEVER,
    authority_expiry={"x509": NEVER},
    authority_lifetime={"x509": NEVER},
    authority_failing=False,
    weak_proofs={"no_pidfs": 0},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric as Prometheus stores it; `labels` are in the order of the exposition."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


def metrics() -> Iterator[Metric]:
    """The metrics that the agent exports, without those of the process."""
    registry = Metrics(Words(attestors=["unix"], methods=["FetchX509SVID"]))
    registry.watch(lambda: _LEVELS)
    for family in text_string_to_metric_families(registry.text()):
        if not family.name.startswith("vouchd_"):
            continue
        sample = family.samples[0]
        name = family.name if family.type == "histogram" else sample.name
        labels = tuple(each for each in sample.labels if each != _LABEL_OF_BUCKETS)
        yield Metric(name=name, type=family.type, labels=labels, meaning=family.documentation)


def stages() -> Mapping[str, str]:
    """The stages of a call with their meanings."""
    return {
        **_members(signals.Stage),
        "attestor:NAME": "Attestation by one attestor.",
    }


def refusal_reasons() -> Mapping[str, str]:
    """The reasons of refusals with their meanings."""
    exceeded = [OverLimitError(kind, scope) for kind in Resource for scope in Scope]
    quotas = {each.reason: f"{str(each).partition(';')[0].capitalize()}." for each in exceeded}
    return {**_members(signals.Refused), **quotas}


def _members(kind: type[StrEnum]) -> Mapping[str, str]:
    """Values of an enumeration with the docstrings below them, which Python does not keep.

    Raises:
        ValueError: a value has no docstring.
    """
    statements = [*ast.iter_child_nodes(ast.parse(inspect.getsource(kind)).body[0])]
    found = {}
    for member, text in itertools.pairwise(statements):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr):
            found[ast.literal_eval(member.value)] = ast.literal_eval(text.value)
    if list(found) != list(map(str, kind)):
        raise ValueError(f"a value of {kind.__name__} has no docstring")
    return found
