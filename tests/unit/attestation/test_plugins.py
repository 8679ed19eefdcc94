"""A plug-in that cannot be loaded, used or constructed is named in the error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from agent.attestation.plugins import known_attestors, known_options, make_attestors
from agent.errors import StartupError
from attestors.api import AttestorContext, AttestorError, Options
from tests.support.fakes import FakeAttestor, FakeLog

ADVICE = "repair its package, or leave it out of `attestors`"


@dataclass
class Point:
    """An entry point that yields this object, or does as the test says."""

    loaded: object = None
    behave: Callable[[], object] | None = None

    def load(self) -> object:
        return self.behave() if self.behave else self.loaded


class Desk(FakeAttestor):
    name = "desk"
    made: list[Desk] = []  # noqa: RUF012 - the test clears it

    def __init__(self, _options: Options, context: AttestorContext) -> None:
        super().__init__()
        self.context = context
        Desk.made.append(self)


def raising(error: BaseException) -> Callable[[], object]:
    def load() -> object:
        raise error

    return load


@pytest.mark.parametrize("error", [ModuleNotFoundError("no desk"), SystemExit(3), KeyError("x")])
def test_plugin_that_cannot_be_imported_is_named(error: BaseException) -> None:
    known = known_attestors({"desk": Point(behave=raising(error))})
    with pytest.raises(StartupError, match=r"the attestor desk cannot be loaded .*repair its"):
        known["desk"]


@pytest.mark.parametrize(
    ("loaded", "fault"),
    [
        (None, "it is NoneType instead of a class"),
        (lambda _options, _context: None, "it is function instead of a class"),
        (type("X", (Desk,), {"name": "unix"}), "its `name` is 'unix' instead of 'desk'"),
        (type("X", (), {}), "its `name` is None instead of 'desk'"),
        (type("X", (Desk,), {"Options": dict}), "its `Options` is not a pydantic model"),
        (type("X", (Desk,), {"Options": Options()}), "its `Options` is not a pydantic model"),
        (type("X", (Desk,), {"timeout": None}), "its `timeout` is None instead of a positive"),
        (type("X", (Desk,), {"timeout": 0}), "its `timeout` is 0 instead of a positive"),
        (type("X", (Desk,), {"timeout": float("inf")}), "its `timeout` is inf instead of"),
        (type("X", (Desk,), {"reuse_seconds": "1"}), "its `reuse_seconds` is '1' instead of"),
        (type("X", (Desk,), {"reuse_seconds": -1}), "its `reuse_seconds` is -1 instead of"),
        (type("X", (Desk,), {"attest": None}), "it has no `attest`"),
        (type("X", (Desk,), {"close": None}), "it has no `close`"),
    ],
)
def test_plugin_without_a_part_of_the_interface_is_refused(loaded: object, fault: str) -> None:
    with pytest.raises(StartupError) as caught:
        known_options({"desk": Point(loaded)})["desk"]
    assert "the attestor desk cannot be used: " in str(caught.value)
    assert fault in str(caught.value)
    assert "or leave it out of `attestors`" in str(caught.value)


def test_plugin_with_the_name_of_a_built_in_one_is_refused() -> None:
    """Its selectors would be taken for those of `unix`."""
    with pytest.raises(StartupError, match="instead of 'desk'"):
        known_attestors({"desk": Point(type("X", (Desk,), {"name": "unix"}))})["desk"]


def test_plugin_without_reuse_is_complete() -> None:
    class Small:
        name = "desk"
        Options = Options
        timeout = 1

        async def attest(self, _workload: object) -> None: ...

        async def close(self) -> None: ...

    assert known_attestors({"desk": Point(Small)})["desk"].name == "desk"


def test_unknown_attestor_is_a_missing_key() -> None:
    known = known_attestors({"desk": Point(Desk)})
    assert "table" not in known
    assert list(known) == ["desk"]
    with pytest.raises(KeyError):
        known["table"]


class Refusing(Desk):
    name = "refusing"

    def __init__(self, _options: Options, _context: AttestorContext) -> None:
        raise AttestorError("there is no floor 13")


class Breaking(Desk):
    name = "breaking"

    def __init__(self, _options: Options, _context: AttestorContext) -> None:
        raise ZeroDivisionError("division by zero")


class Exiting(Desk):
    name = "exiting"

    def __init__(self, _options: Options, _context: AttestorContext) -> None:
        raise SystemExit(1)


POINTS = {kind.name: Point(kind) for kind in (Desk, Refusing, Breaking, Exiting)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refusing", "cannot start: there is no floor 13"),
        ("breaking", f"cannot start (ZeroDivisionError: division by zero); {ADVICE}"),
        ("exiting", f"cannot start (SystemExit: 1); {ADVICE}"),
    ],
)
async def test_constructor_that_raises_is_named_and_the_other_attestors_are_closed(
    name: str, message: str
) -> None:
    Desk.made.clear()
    with pytest.raises(StartupError) as caught:
        await make_attestors({"desk": Options(), name: Options()}, FakeLog().log, POINTS)
    assert str(caught.value) == f"the attestor {name} {message}"
    [desk] = Desk.made
    assert desk.closed


async def test_traceback_of_a_constructor_is_logged() -> None:
    lines = FakeLog()
    with pytest.raises(StartupError):
        await make_attestors({"breaking": Options()}, lines.log, POINTS)
    [line] = lines.of("internal error")
    assert line["exc_info"]
    assert line["attestor"] == "breaking"


async def test_log_lines_of_an_attestor_carry_its_name_at_a_limited_rate() -> None:
    lines = FakeLog()
    [made] = await make_attestors({"desk": Options()}, lines.log, POINTS)
    log: Any = made
    for number in range(1000):
        log.context.log("the desk is full", key=number, event_number=number)
    logged = lines.of("the desk is full")
    assert {line["attestor"] for line in logged} == {"desk"}
    assert [line["key"] for line in logged] == [0, 1, 2, 3, 4]
