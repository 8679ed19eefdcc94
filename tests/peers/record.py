"""peers-results.json: the values of every round, with date, versions and machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tests.bench.findings import RefusedError
from tests.bench.report import commit
from tests.peers.rows import Result

RESULTS = Path("peers-results.json")


class Measured(BaseModel):
    """The values of a row, and the commit and day of their measurement."""

    model_config = ConfigDict(frozen=True)

    ours: list[float]
    peer: list[float]
    commit: str
    day: date

    @property
    def result(self) -> Result:
        """The values alone."""
        return Result(ours=self.ours, peer=self.peer)


class Record(BaseModel):
    """The content of the file. A new run replaces the rows that it measures."""

    model_config = ConfigDict(frozen=True)

    machine: str
    peer: str
    rows: dict[str, Measured] = {}

    def with_results(self, results: Mapping[str, Result], today: date) -> Record:
        """Return the record with new values."""
        measured = {
            key: Measured(
                **{k: _rounded(v) for k, v in asdict(each).items()}, commit=commit(), day=today
            )
            for key, each in results.items()
        }
        return self.model_copy(update={"rows": {**self.rows, **measured}})

    @property
    def sources(self) -> str:
        """A sentence with days, commits, versions and machine."""
        days = sorted({each.day.isoformat() for each in self.rows.values()})
        commits = sorted({each.commit for each in self.rows.values()})
        measured = f"Measured on {', '.join(days)} at {', '.join(commits)} beside {self.peer}."
        return f"{measured} {self.machine}."


def read(path: Path) -> Record:
    """Read a results file.

    Raises:
        RefusedError: it is missing, or is no results file.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RefusedError(
            f"cannot read {path}: {error.strerror}; run `make bench-peers`"
        ) from None
    except ValidationError:
        raise RefusedError(f"{path} is no results file of bench-peers: remove it") from None


def known_or_new(path: Path, peer: str) -> Record:
    """Return the rows of the file, if there is one, with this machine and peer."""
    rows = read(path).rows if path.exists() else {}
    return Record(machine=_machine(), peer=peer, rows=rows)


def write(record: Record, path: Path) -> None:
    """Replace the file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(record.model_dump_json(indent=1) + "\n")
    beside.replace(path)


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _machine() -> str:
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in cpus if line.startswith("model name")), "unknown")
    return (
        f"Machine: {os.cpu_count()} cores of {cpu}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, uvloop {version('uvloop')}"
    )
