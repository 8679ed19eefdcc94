"""The metrics: counters, gauges and durations, which a scrape reads.

The number of series is fixed when the agent starts: each label has its values from a list (`Words`,
`Stage`, `Refused`), and any other value counts as `other`. No PID, user or SPIFFE ID is a label:
a workload could create any number of series, and the metrics are not protected like the log.

Each call reports several times, from the thread of the event loop alone: a report adds to a number.
`agent.telemetry.exposition` makes text of the numbers; it is imported at the first scrape, since
prometheus_client takes memory and time at the start, and most agents are never scraped.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.signals import Refused, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Bucket bounds: from a match among few entries to a client that does not read.
SECONDS = (1e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1, 5)
# Codes that calls end with: those of agent.api.status, those by which agent.transport.grpc_protocol
# refuses a broken request, and those of calls that the client (CANCELLED) or the deadline ends
# (DEADLINE_EXCEEDED).
CODES = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
)
OTHER = str(Refused.OTHER)
NEVER = float("nan")
"""The time of an event that will not happen: every comparison is false, in PromQL too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Label values that depend on the settings and on the API."""

    version: str = ""
    attestors: Iterable[str] = ()
    methods: Iterable[str] = ()
    limits: Iterable[str] = ()
    """Reasons of refusals by a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Current sizes and states. Times are seconds since the epoch, or `NEVER`."""

    ready: bool
    connections: int
    streams: Mapping[str, int]
    """Open streams by method."""
    svids: Mapping[str, int]
    """Cached SVIDs by kind."""
    svid_expiry: float
    """When the first of the cached X.509-SVIDs expires."""
    authority_expiry: Mapping[str, float]
    """When the signing authority expires, by kind."""
    authority_lifetime: Mapping[str, float]
    """Seconds between the validity bounds of the signing authority, by kind."""
    authority_failing: bool
    """Whether a due step of the rotation failed."""
    weak_proofs: Mapping[str, int] = field(default_factory=dict)
    """Connections so far whose caller proof is weak, by weakness."""


class Counts:
    """A family of counters: one for each known tuple of label values."""

    __slots__ = ("labels", "meaning", "name", "values")

    def __init__(
        self, name: str, meaning: str, labels: tuple[str, ...], known: Iterable[tuple[str, ...]]
    ) -> None:
        self.name = name
        self.meaning = meaning
        self.labels = labels
        self.values = dict.fromkeys(known, 0)

    def add(self, *values: str, times: int = 1) -> None:
        """Count for these label values, which must be known."""
        self.values[values] += times


class Level:
    """A gauge."""

    __slots__ = ("meaning", "name", "value")

    def __init__(self, name: str, meaning: str, value: float = 0.0) -> None:
        self.name = name
        self.meaning = meaning
        self.value = value

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value


class Durations:
    """A histogram of durations in seconds, with the bounds of SECONDS."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class Metrics:
    """The agent's metrics; implements `Signals`.

    Instances share nothing. All methods are called from the thread of the event loop.
    """

    def __init__(self, words: Words = Words()) -> None:
        self.version = words.version
        self.levels: Callable[[], Levels] | None = None
        """Reads the current sizes and states; set once the parts exist."""
        self._set_levels()
        self._set_counts(words)
        attestors = (*words.attestors, OTHER)
        self._stages = {stage: Durations() for stage in Stage}
        self._attestors = {name: Durations() for name in attestors}

    def _set_levels(self) -> None:
        self.entries = Level("vouchd_entries", "Registration entries in force.")
        self.entries_valid = Level(
            "vouchd_entries_valid",
            "1 if the entries in force are those of the files, 0 if the files have errors.",
        )
        self.entries_loaded_at = Level(
            "vouchd_entries_loaded_timestamp_seconds",
            "Time of the last load of the entries.",
        )
        self.settings_valid = Level(
            "vouchd_settings_valid",
            "1 if the settings in force are those of the file, 0 if the last reload failed.",
            1.0,
        )

    def _set_counts(self, words: Words) -> None:
        results = [("loaded",), ("refused",)]
        self._reloads = Counts(
            "vouchd_entries_reloads",
            "Attempts to load changed entry files, by result.",
            ("result",),
            [*results, ("internal_error",)],
        )
        self._settings_reloads = Counts(
            "vouchd_settings_reloads",
            "Attempts to reload the settings, by result.",
            ("result",),
            results,
        )
        self._calls = Counts(
            "vouchd_calls",
            "Ended calls, by method and gRPC status code.",
            ("method", "code"),
            [(m, c) for m in (*words.methods, OTHER) for c in (*CODES, OTHER)],
        )
        self._refusals = Counts(
            "vouchd_refusals",
            "Refused calls and connections, by reason.",
            ("reason",),
            [(reason,) for reason in (*map(str, Refused), *words.limits)],
        )
        self._waits = Counts(
            "vouchd_request_waits",
            "Times that the fair queue delayed the requests of a user and cgroup.",
            (),
            [()],
        )
        self._failures = Counts(
            "vouchd_attestor_failures",
            "Attestations in which the attestor failed.",
            ("attestor",),
            [(name,) for name in (*words.attestors, OTHER)],
        )

    def entries_reloaded(self, result: str) -> None:
        """Count a reload of the entries: `loaded`, `refused` or `internal_error`."""
        self._reloads.add(result)

    def settings_reloaded(self, *, valid: bool) -> None:
        """Count a reload of the settings."""
        self.settings_valid.set(valid)
        self._settings_reloads.add("loaded" if valid else "refused")

    # --- signals ---------------------------------------------------------------------------------

    def timed(self, stage: Stage, seconds: float) -> None:
        """See Signals.timed."""
        self._stages[stage].observe(seconds)

    def attested(self, attestor: str, seconds: float, *, failed: bool) -> None:
        """See Signals.attested."""
        name = attestor if attestor in self._attestors else OTHER
        self._attestors[name].observe(seconds)
        if failed:
            self._failures.add(name)

    def waited(self) -> None:
        """See Signals.waited."""
        self._waits.add()

    def refused(self, reason: str, times: int = 1) -> None:
        """See Signals.refused."""
        known = (reason,) in self._refusals.values
        self._refusals.add(reason if known else OTHER, times=times)

    def ended(self, method: str, code: str) -> None:
        """See Signals.ended."""
        calls = self._calls.values
        if (method, code) in calls:
            calls[method, code] += 1
            return
        # A path that a client chose, or a code that the API never returns.
        method = method if (method, OTHER) in calls else OTHER
        calls[method, code if code in CODES else OTHER] += 1

    # --- exposition -----------------------------------------------------------------------------

    def watch(self, levels: Callable[[], Levels]) -> None:
        """Call `levels` for each exposition."""
        self.levels = levels

    def gauges(self) -> Iterable[Level]:
        """Return the gauges that the parts set."""
        return self.entries, self.entries_valid, self.entries_loaded_at, self.settings_valid

    def counts(self) -> Iterable[Counts]:
        """Return the counters."""
        return (
            self._reloads,
            self._settings_reloads,
            self._calls,
            self._refusals,
            self._waits,
            self._failures,
        )

    def durations(self) -> Mapping[str, Durations]:
        """Return the durations of each stage and of each attestor, by the name of the series."""
        named = {str(stage): each for stage, each in self._stages.items()}
        return named | {f"attestor:{name}": each for name, each in self._attestors.items()}

    def text(self) -> str:
        """Return all metrics in the Prometheus text format."""
        from agent.telemetry.exposition import exposed  # noqa: PLC0415 - see the module's text

        return exposed(self)
