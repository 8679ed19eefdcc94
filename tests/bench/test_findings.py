"""Findings: ratios, budgets, growth and regressions from measured values."""

from __future__ import annotations

import pytest

from tests.bench import instructions
from tests.bench.findings import BASELINE, OURS, Budget, Finding, growths
from tests.bench.reference import exceeded


def finding(
    ours: list[float], theirs: list[float] | None = None, *, size: int = 1, per_one: bool = False
) -> Finding:
    values = {OURS: ours, BASELINE: theirs or []}
    return Finding(scenario="s", measure="m", size=size, values=values, per_one=per_one)


def test_a_ratio_is_of_values_of_one_round() -> None:
    # A round in which the machine was slow was slow for both.
    ratio = finding([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]).ratio()
    assert ratio is not None
    assert (ratio.least, ratio.median, ratio.most) == (2.0, 2.0, 3.0)


def test_without_a_baseline_there_is_no_ratio() -> None:
    assert finding([1.0]).ratio() is None
    assert finding([1.0], [0.0]).ratio() is None


def test_ratio_of_rounds_that_do_not_align_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        finding([1.0, 2.0], [1.0]).ratio()


@pytest.mark.parametrize(("most", "held"), [(2.0, True), (1.9, False)])
def test_a_budget_is_for_the_median(most: float, held: bool) -> None:  # noqa: FBT001
    values = {OURS: [1.0, 4.0, 9.0], BASELINE: [1.0, 2.0, 3.0]}
    budget = Budget(most=most, of_baseline=True)
    found = Finding(scenario="s", measure="m", size=1, values=values, budget=budget)
    assert found.within_budget is held


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_growth_is_the_exponent(exponent: float) -> None:
    findings = [finding([3 * size**exponent], size=size) for size in (1, 10, 100)]
    [growth] = growths(findings)
    assert growth.exponent == pytest.approx(exponent)
    assert growth.last_step == pytest.approx(exponent)
    assert growth.worse_than_linear is (exponent > 1.5)


def test_a_constant_share_of_each_is_linear_growth() -> None:
    [growth] = growths([finding([5.0], size=size, per_one=True) for size in (1, 10, 100)])
    assert growth.exponent == pytest.approx(1.0)


def test_constant_part_does_not_hide_growth() -> None:
    [growth] = growths([finding([1000 + size**2.0], size=size) for size in (1, 10, 100, 1000)])
    assert growth.exponent < 1.15
    assert growth.worse_than_linear


def test_growth_needs_three_sizes() -> None:
    assert not growths([finding([1.0], size=size) for size in (1, 10)])


def test_doubled_measure_is_a_regression() -> None:
    recorded = {"a": 1.5, "b": 1.5}
    assert exceeded(recorded, {"a": 2.9, "b": 3.1}) == {
        "b": "3.10 times the baseline, recorded were 1.50"
    }


@pytest.mark.parametrize("measure", [instructions.MEASURE, instructions.PER_STREAM])
def test_a_quarter_more_instructions_is_a_regression(measure: str) -> None:
    name = f"a call: {measure}"
    assert not exceeded({name: 2.0}, {name: 2.5})
    assert exceeded({name: 2.0}, {name: 2.51}).keys() == {name}
