"""Run each attack against a naive agent, where it must succeed, and against vouchd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.targets import Tally, Target

_TALLY = pytest.StashKey[Tally]()
KINDS = ("naive", "vouchd")


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Target]]:
    """Start a target of a chosen kind, with options."""
    name = request.node.originalname
    with ExitStack() as stack:

        def start_one(kind: str, **options: tuple[str, ...]) -> Target:
            tally = request.config.stash.setdefault(_TALLY, Tally())
            target = Target(naive=kind == "naive", name=name, tally=tally, **options)
            stack.callback(target.close)
            return target

        yield start_one


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, start: Callable[..., Target]) -> Target:
    return start(request.param)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tally = config.stash.get(_TALLY, Tally())
    if not tally.tried:
        return
    terminalreporter.section("attacks")
    terminalreporter.write_line(f"tried                              {len(tally.tried):3}")
    terminalreporter.write_line(f"succeeded against the naive agent  {len(tally.naive):3}")
    terminalreporter.write_line(f"succeeded against vouchd           {len(tally.vouchd):3}")
    for name in sorted(tally.vouchd):
        terminalreporter.write_line(f"  {name}")
