"""What is counted, in the names and the form of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """The agent's metrics; each instance counts by itself."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.entries = Gauge(
            "vouchd_entries", "Registration entries in force.", registry=self._registry
        )
        self.entries_valid = Gauge(
            "vouchd_entries_valid",
            "1 if the entries in force are those of the files, 0 if the files have mistakes.",
            registry=self._registry,
        )
        self.entries_loaded_at = Gauge(
            "vouchd_entries_loaded_timestamp_seconds",
            "When the entries in force were loaded.",
            registry=self._registry,
        )
        self.reloads = Counter(
            "vouchd_entries_reloads",
            "Attempts to load changed entry files.",
            ["result"],
            registry=self._registry,
        )
        for result in ("loaded", "refused"):
            self.reloads.labels(result)  # so that a rate of it exists from the beginning

    def text(self) -> str:
        """All of them in the Prometheus text format."""
        return generate_latest(self._registry).decode()
