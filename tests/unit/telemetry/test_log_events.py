"""docs/reference/log-events.md lists exactly the events, levels and fields of the code."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

from google.protobuf.descriptor import Descriptor

from agent.entries.explain import Lacking, Matched, Missed, Verdict
from agent.pb import admin_pb2 as pb
from agent.telemetry.audit import (
    IssuedJwt,
    IssuedX509,
    RefusedCall,
    RefusedConnection,
    RefusedSender,
)

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs/reference/log-events.md"
THROTTLED_LOG = ROOT / "agent/telemetry/throttled_log.py"

LEVELS = {"exception": "error"} | {
    each: each for each in ("debug", "info", "warning", "error", "critical")
}
LOGGERS = {"log", "_log", "throttled", "_throttled"}
OF_EVERY_LINE = {"timestamp", "level", "event", "exception", "library"}
OF_LIMITED_LINES = {"suppressed", "suppressed_in_all"}
OF_AUDITED_CALLER = {"pid", "uid", "executable", "selectors_sha256", "process_key"}


@dataclass
class Written:
    """An event in the code: its levels and fields over all places that write it."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    has_further_fields: bool = False


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def literals(node: ast.expr) -> list[str]:
    """The texts that an expression may be.

    Raises:
        AssertionError: the expression is not constant.
    """
    if isinstance(node, ast.IfExp):
        return [*literals(node.body), *literals(node.orelse)]
    assert isinstance(node, ast.Constant), f"event is not constant: {ast.unparse(node)}"
    assert isinstance(node.value, str)
    return [node.value]


def log_calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls of loggers with the level; the event is the first argument."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_logger = name_of(node.func.value) in LOGGERS
            if is_logger and node.func.attr in LEVELS:
                yield LEVELS[node.func.attr], node


def in_code() -> dict[str, Written]:
    found: defaultdict[str, Written] = defaultdict(Written)
    for path in [*(ROOT / "agent").rglob("*.py"), *(ROOT / "attestors").rglob("*.py")]:
        if path == THROTTLED_LOG:
            continue
        for level, call in log_calls(path):
            if name_of(call.args[0]) == "event":
                continue  # the log of a plug-in: the text is its own
            for event in literals(call.args[0]):
                found[event].levels.add(level)
                found[event].fields |= {each.arg for each in call.keywords if each.arg}
                found[event].has_further_fields |= any(each.arg is None for each in call.keywords)
    dropped = Written(levels={"warning"}, fields={"count", "reason"})
    return {**found, "log lines dropped": dropped}


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    text = DOCUMENT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows
    ]


def code_words(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_table_has_every_event_of_the_code_and_no_other() -> None:
    documented = [row[0].strip("`") for row in table("Events")]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(in_code())


def test_the_table_has_the_level_of_each_event() -> None:
    code = in_code()
    assert {row[0].strip("`"): {row[1]} for row in table("Events")} == {
        event: written.levels for event, written in code.items()
    }


def test_the_table_has_the_fields_of_each_event() -> None:
    code = in_code()
    for row in table("Events"):
        written, documented = code[row[0].strip("`")], code_words(row[3])
        assert written.fields <= documented, row[0]
        if not written.has_further_fields:
            assert written.fields == documented, row[0]


def test_an_event_is_lower_case_words_without_punctuation() -> None:
    for event in in_code():
        assert re.fullmatch(r"[a-z0-9.]+( [a-z0-9.]+)*", event)


def test_the_audit_table_has_the_fields_of_each_event() -> None:
    documented = {row[0].strip("`"): code_words(row[2]) for row in table("Audit trail")}
    issued = {each.name for kind in (IssuedX509, IssuedJwt) for each in fields(kind)}
    assert documented == {
        "svid issued": {"kind"} | issued | OF_AUDITED_CALLER,
        RefusedCall.event: {each.name for each in fields(RefusedCall)} | OF_AUDITED_CALLER,
        RefusedConnection.event: {
            each.name for kind in (RefusedConnection, RefusedSender) for each in fields(kind)
        }
        | OF_AUDITED_CALLER,
    }


def test_the_field_table_explains_every_field_and_no_other() -> None:
    documented = [row[0].strip("`") for row in table("Fields")]
    assert len(documented) == len(set(documented))
    used = set().union(
        *(code_words(row[3]) for row in table("Events")),
        *(code_words(row[2]) for row in table("Audit trail")),
    )
    assert set(documented) == used | OF_EVERY_LINE | OF_LIMITED_LINES


# --- the JSON of commands ------------------------------------------------------------------------


def keys_of_message(message: Descriptor) -> set[str]:
    """The keys of a message of the admin API, and of the messages in it."""
    within = [each.message_type for each in message.fields if each.message_type is not None]
    own = [each for each in within if each.file is message.file]
    return {each.name for each in message.fields}.union(*map(keys_of_message, own))


def keys_in_code(path: Path) -> Iterator[str]:
    """The constant keys of mappings, and the names that `_pem` takes."""
    for node in ast.walk(ast.parse(path.read_text())):
        keys: list[ast.expr | None] = []
        match node:
            case ast.Dict():
                keys = node.keys
            case ast.Subscript(ctx=ast.Store()):
                keys = [node.slice]
            case ast.Call(func=ast.Name(id="_pem")):
                keys = [node.args[0]]
        for key in keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value


def keys_of_commands() -> set[str]:
    answers = (pb.Status, pb.Explanation, pb.AuthorityList, pb.EntriesDiff)
    return set().union(
        *(keys_of_message(cast("Descriptor", each.DESCRIPTOR)) for each in answers),
        *(keys_in_code(ROOT / f"agent/cli/{each}.py") for each in ("admin", "entries", "fetch")),
        *({each.name for each in fields(kind)} for kind in (Verdict, Matched, Missed, Lacking)),
    )


def test_the_tables_explain_every_key_of_commands_and_no_other() -> None:
    of_events = {row[0].strip("`") for row in table("Fields")}
    of_commands = [row[0].strip("`") for row in table("Fields of commands")]
    assert sorted(set(of_commands)) == of_commands
    assert set(of_commands) == keys_of_commands() - of_events
