"""The rows of the comparison: what is measured, its unit and its budget. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.findings import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row. `most` is the budget: of the ratio to the peer, or `absolute`, of our value."""

    key: str
    label: str
    unit: str
    most: float
    absolute: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The values of a row by rounds. The agents alternate: values of one round are comparable."""

    ours: Sequence[float]
    peer: Sequence[float] = ()

    @property
    def ratio(self) -> Spread | None:
        """The ratio of the medians, and the least and greatest ratio of a round."""
        if not self.peer or min(self.peer) <= 0:
            return None
        rounds = [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]
        return Spread(
            median=median(self.ours) / median(self.peer), least=min(rounds), most=max(rounds)
        )

    def within(self, row: Row) -> bool | None:
        """Whether the budget of the row is held; None if it cannot be said."""
        if row.absolute:
            return median(self.ours) <= row.most
        return None if self.ratio is None else self.ratio.median <= row.most


PROGRAMS = "the program evidence of today; a later change replaces it"
ROWS = (
    Row(key="open", label="FetchX509SVID on an open connection, CPU", unit="µs", most=0.45),
    Row(
        key="small program",
        label="… path and digest of a small executable, CPU",
        unit="µs",
        most=0.8,
        note=PROGRAMS,
    ),
    Row(
        key="large program",
        label="… path and digest of an executable of 20 MB, CPU",
        unit="µs",
        most=0.04,
        note=PROGRAMS,
    ),
    Row(key="connect", label="connect + FetchX509SVID, CPU", unit="µs", most=0.7),
    Row(key="open 100", label="100 calls at once, CPU of each", unit="µs", most=0.75),
    Row(key="open 100 p50", label="… median latency", unit="ms", most=1.2),
    Row(
        key="connect 100", label="100 connects and calls at once, CPU of each", unit="µs", most=0.9
    ),
    Row(key="connect 100 p50", label="… median latency", unit="ms", most=1),
    Row(key="jwt", label="FetchJWTSVID, kept, CPU", unit="µs", most=0.5),
    Row(key="validate", label="ValidateJWTSVID, CPU", unit="µs", most=0.55),
    Row(
        key="many entries",
        label="FetchX509SVID among 10,000 entries that share the caller's user, CPU",
        unit="µs",
        most=0.02,
    ),
    Row(
        key="stream memory",
        label="an open idle stream with its connection, memory",
        unit="KiB",
        most=12,
        absolute=True,
    ),
    Row(key="stream descriptors", label="… descriptors", unit="", most=2, absolute=True),
    Row(
        key="idle",
        label="2,000 idle streams, CPU while nothing happens",
        unit="%",
        most=0.1,
        absolute=True,
    ),
    Row(
        key="idle attested",
        label="… with re-attestation each minute (the peer never does)",
        unit="%",
        most=0.3,
        absolute=True,
    ),
    Row(
        key="rest",
        label="memory at rest (PSS of all processes)",
        unit="MiB",
        most=57,
        absolute=True,
    ),
    Row(key="start", label="cold start to the first SVID", unit="s", most=0.4, absolute=True),
    Row(
        key="entry added",
        label="entry added, until the message on an open stream",
        unit="ms",
        most=45,
        absolute=True,
    ),
)


def table(results: Mapping[str, Result]) -> str:
    """Return the rows with results as a Markdown table."""
    head = "| | vouchd | spire-agent | ratio | budget |\n|---|---|---|---|---|"
    lines = [_line(row, results[row.key]) for row in ROWS if row.key in results]
    notes = dict.fromkeys(row.note for row in ROWS if row.note and row.key in results)
    return "\n".join([head, *lines, *(f"\n\\* {note[0].upper()}{note[1:]}." for note in notes)])


def _line(row: Row, result: Result) -> str:
    ratio = result.ratio
    cells = [
        f"{row.label}{'*' if row.note else ''}",
        _value(result.ours, row.unit),
        _value(result.peer, row.unit),
        "" if ratio is None else _ratio(ratio),
        _budget(row, result),
    ]
    return f"| {' | '.join(cells)} |"


def _value(values: Sequence[float], unit: str) -> str:
    return f"{short(median(values))} {unit}".rstrip() if values else ""


def _ratio(ratio: Spread) -> str:
    shown, least, most = map(short, (ratio.median, ratio.least, ratio.most))
    return shown if least == most else f"{shown} ({least} to {most})"


def _budget(row: Row, result: Result) -> str:
    text = f"{row.most:g} {row.unit}".rstrip() if row.absolute else f"{row.most:g}"
    return text + {True: "", False: ", **missed**", None: ", not measured"}[result.within(row)]


def short(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
