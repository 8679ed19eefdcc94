"""`make bench-plot`: bench-results.json as a picture, bench-results.svg.

For every kind of call, alone and among many at once: CPU, p50 and p99 of each server, from the
least of the rounds to the most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

from tests.bench.bench import RESULTS
from tests.bench.calls import CPU, P50, P99

MEASURES = (CPU, P50, P99)
_INCHES = (5.0, 2.6)


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True), default=RESULTS)
@click.argument("picture", type=click.Path(path_type=Path), default=RESULTS.with_suffix(".svg"))
def main(results: Path, picture: Path) -> None:
    """Draw RESULTS as PICTURE; its name says whether that is an .svg or a .png."""
    told = json.loads(results.read_text())
    findings = [each for each in told["findings"] if each["measure"] in MEASURES]
    scenarios = list(dict.fromkeys(each["scenario"] for each in findings))
    if not scenarios:
        raise click.ClickException(f"{results} has no calls in it; run `make bench` first")
    width, height = _INCHES
    figure, axes = plt.subplots(
        len(scenarios),
        len(MEASURES),
        figsize=(width * len(MEASURES), height * len(scenarios)),
        squeeze=False,
        layout="constrained",
    )
    for row, scenario in zip(axes, scenarios, strict=True):
        for axis, measure in zip(row, MEASURES, strict=True):
            _draw(
                axis, [f for f in findings if (f["scenario"], f["measure"]) == (scenario, measure)]
            )
            axis.set_title(f"{scenario}\n{measure}", fontsize="medium")
    machine = told["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores; vouchd {machine['commit']}")
    figure.savefig(picture)


def _draw(axis: Any, findings: Sequence[dict[str, Any]]) -> None:
    """Of each server a line over the sizes, and how far its rounds lay apart."""
    for server in dict.fromkeys(name for finding in findings for name in finding["servers"]):
        points = [(f["size"], f["servers"][server]["spread"]) for f in findings]
        sizes = [size for size, _ in points]
        axis.plot(sizes, [spread["median"] for _, spread in points], marker="o", label=server)
        ends = [[spread[end] for _, spread in points] for end in ("least", "most")]
        axis.fill_between(sizes, *ends, alpha=0.2)
    axis.set_xscale("log")
    axis.set_xlabel("at once")
    if findings and findings[0]["measure"] == CPU:
        axis.set_ylim(bottom=0)
    else:
        axis.set_yscale("log")
    axis.legend()


if __name__ == "__main__":
    main()
