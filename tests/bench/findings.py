"""What was measured: values of several rounds, what they are to the baseline, how they grow."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, median

import click

OURS = "vouchd"
BASELINE = "baseline"
GATE_ALONE = "gate alone"
# Of sizes ten times as large, 1.15 is half as much again of what linear growth would be.
CLEARLY_WORSE_THAN_LINEAR = 1.15


class RefusedError(click.ClickException):
    """The bench cannot do as it is told; known before it measures anything."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that the median may be; `of_baseline`: as a ratio to it."""

    most: float
    of_baseline: bool = False

    def __str__(self) -> str:
        return f"{self.most:g} x" if self.of_baseline else f"{self.most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The middle and the ends of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of these, which must be some."""
        known = sorted(values)
        return cls(median=median(known), least=known[0], most=known[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One measure of one scenario at one size.

    `values`: by server, one of each round; servers took turns, so that values of one round belong
    together. `per_one`: each is the share of one of `size`; the sum over all is what grows.
    """

    scenario: str
    measure: str
    size: int
    values: Mapping[str, Sequence[float]]
    per_one: bool = False
    budget: Budget | None = None

    def spread(self, server: str) -> Spread | None:
        """The server's values; None if it has none."""
        return Spread.of(self.values[server]) if self.values.get(server) else None

    def ratio(self, server: str = OURS) -> Spread | None:
        """The server's values to the baseline's, round by round; None where there are none."""
        values, bare = self.values.get(server), self.values.get(BASELINE)
        if server == BASELINE or not values or not bare or min(bare) <= 0:
            return None
        return Spread.of(its / bares for its, bares in zip(values, bare, strict=True))

    @property
    def within_budget(self) -> bool | None:
        """None if there is no budget, or nothing to hold against it."""
        if self.budget is None:
            return None
        held = self.ratio() if self.budget.of_baseline else self.spread(OURS)
        return None if held is None else held.median <= self.budget.most

    def total(self, server: str) -> float:
        """What all of `size` took, at least: what disturbs only adds. 0 if that is not known."""
        spread = self.spread(server)
        if spread is None:
            return 0.0
        return spread.least * (self.size if self.per_one else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Over the sizes of one measure: what all took grows as size to the `exponent`.

    `last_step` is the same between the two largest sizes alone, where a constant part of a small
    size hides nothing.
    """

    scenario: str
    measure: str
    server: str
    exponent: float
    last_step: float

    @property
    def worse_than_linear(self) -> bool:
        """Clearly."""
        return max(self.exponent, self.last_step) > CLEARLY_WORSE_THAN_LINEAR


def growths(findings: Iterable[Finding], server: str = OURS) -> list[Growth]:
    """Of every measure that has three sizes or more."""
    points: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for finding in findings:
        total = finding.total(server)
        if total > 0:
            point = (math.log(finding.size), math.log(total))
            points[finding.scenario, finding.measure].append(point)
    return [
        Growth(
            scenario=scenario,
            measure=measure,
            server=server,
            exponent=_slope(sorted(logarithms)),
            last_step=_slope(sorted(logarithms)[-2:]),
        )
        for (scenario, measure), logarithms in points.items()
        if len({size for size, _ in logarithms}) >= 3
    ]


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares."""
    return linear_regression([x for x, _ in points], [y for _, y in points]).slope
