"""Findings: measured values of several rounds, their ratios to the baseline, their growth."""

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
# At ten times the size, an exponent of 1.15 is 1.4 times linear growth.
CLEARLY_WORSE_THAN_LINEAR = 1.15


class RefusedError(click.ClickException):
    """The benchmark cannot run with these options; raised before the first measurement."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The upper limit of the median; `of_baseline`: of its ratio to the baseline."""

    most: float
    of_baseline: bool = False

    def __str__(self) -> str:
        return f"{self.most:g} x" if self.of_baseline else f"{self.most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median, the least and the greatest of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of one or more values."""
        known = sorted(values)
        return cls(median=median(known), least=known[0], most=known[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One measure of one scenario at one size.

    `values`: by server, one value of each round. The servers alternate, so values of the same round
    are comparable. `per_one`: a value is the cost of one of `size`; the total is value * size.
    """

    scenario: str
    measure: str
    size: int
    values: Mapping[str, Sequence[float]]
    per_one: bool = False
    budget: Budget | None = None

    def spread(self, server: str) -> Spread | None:
        """Return the spread of the server's values; None without values."""
        return Spread.of(self.values[server]) if self.values.get(server) else None

    def ratio(self, server: str = OURS) -> Spread | None:
        """Return the spread of the ratios to the baseline by round; None without a baseline."""
        values, bare = self.values.get(server), self.values.get(BASELINE)
        if server == BASELINE or not values or not bare or min(bare) <= 0:
            return None
        return Spread.of(its / bares for its, bares in zip(values, bare, strict=True))

    @property
    def within_budget(self) -> bool | None:
        """Whether the median is within the budget; None without a budget or a value."""
        if self.budget is None:
            return None
        held = self.ratio() if self.budget.of_baseline else self.spread(OURS)
        return None if held is None else held.median <= self.budget.most

    def total(self, server: str) -> float:
        """Return the least total of all rounds, since disturbances only add; 0 without values."""
        spread = self.spread(server)
        if spread is None:
            return 0.0
        return spread.least * (self.size if self.per_one else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The growth of one measure: the total grows as size to the power of `exponent`.

    `last_step` is the exponent between the two largest sizes, where a constant part weighs least.
    """

    scenario: str
    measure: str
    server: str
    exponent: float
    last_step: float

    @property
    def worse_than_linear(self) -> bool:
        """Whether an exponent exceeds CLEARLY_WORSE_THAN_LINEAR."""
        return max(self.exponent, self.last_step) > CLEARLY_WORSE_THAN_LINEAR


def growths(findings: Iterable[Finding], server: str = OURS) -> list[Growth]:
    """Return the growth of each measure with three or more sizes."""
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
    """Fit a line by least squares and return its slope."""
    return linear_regression([x for x, _ in points], [y for _, y in points]).slope
