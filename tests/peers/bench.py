"""`make bench-peers`: our agent beside SPIRE's, measured by one client in alternating rounds.

See README.md beside this file.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from tests.bench.findings import RefusedError
from tests.peers import record, services
from tests.peers.rows import table
from tests.peers.scenarios import SCENARIOS, STREAMS, Bench

PAGE = Path("docs/performance.md")
HEADING = "### Results\n"
"""The heading of the page's section that the table fills, up to the next heading."""
_DESCRIPTORS_PER_STREAM = 4


@click.group()
def main() -> None:
    """Measure beside the peer, or write the table of the measured values."""


@main.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=record.RESULTS,
    show_default=True,
    help="Results file; new values replace values of the same rows.",
)
def measure(scenarios: tuple[str, ...], results: Path) -> None:
    """Measure SCENARIOS; default: all."""
    if os.geteuid():
        raise RefusedError("bench-peers needs root: an agent hides its memory from other users")
    _raise_descriptor_limit()
    # Switch threads often: no thread of this process may delay a client.
    sys.setswitchinterval(1e-4)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    binaries = services.binaries()
    known = record.known_or_new(results, f"spire-agent {services.version(binaries)}")
    with _bench(binaries) as bench:
        for name in scenarios or SCENARIOS:
            began = time.perf_counter()
            found = SCENARIOS[name](bench)
            known = known.with_results(found, datetime.now(UTC).date())  # noqa: TID251 - the day of the run
            record.write(known, results)  # after each scenario: an interrupted run keeps it
            click.echo(f"{name}, {time.perf_counter() - began:.0f} s\n{table(found)}\n")


@main.command("table")
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False), default=record.RESULTS)
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), default=PAGE)
def write_table(results: Path, page: Path) -> None:
    """Write the table of the results into the page's section of that name."""
    known = record.read(results)
    text = table({key: each.result for key, each in known.rows.items()})
    page.write_text(placed(page.read_text(), f"{known.sources}\n\n{text}\n"))


def placed(page: str, text: str) -> str:
    """Replace the text below the heading, up to the next heading.

    Raises:
        RefusedError: the page lacks the heading.
    """
    head, heading, rest = page.partition(HEADING)
    if not heading:
        raise RefusedError(f"the page lacks the heading {HEADING.strip()!r}")
    next_heading = re.search(r"^#", rest, re.MULTILINE)
    tail = "" if next_heading is None else f"\n{rest[next_heading.start() :]}"
    return f"{head}{heading}\n{text}{tail}"


@contextmanager
def _bench(binaries: Path) -> Iterator[Bench]:
    # A short path: unix(7) allows 107 bytes.
    with tempfile.TemporaryDirectory(prefix="peers-", dir="/tmp") as name:
        folder = Path(name)
        with closing(services.Spire(binaries, folder / "spire")) as spire:
            yield Bench(folder, spire)


def _raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * STREAMS * _DESCRIPTORS_PER_STREAM
    if 0 <= hard < needed:
        raise RefusedError(f"needs {needed} open files, and {hard} are allowed: raise ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
