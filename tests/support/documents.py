"""The command blocks of documents, and terminals that run them.

A ```console block has commands, each after `$ `, and below each command fragments of its output.
The output must contain the fragments in this order, each within a line; `…` stands for any text.
A block without a command has the next output of its terminal's running command.
HTML comments directly above a block are directives for the tests:

    <!-- terminal: agent -->       the block runs in another shell of that name
    <!-- waits for: ready on -->   the last command keeps running; continue at this text
    <!-- exit code: 1 -->          the exit code of the last command (default 0)
    <!-- file: PATH -->            the block is the content of this file
    <!-- setup: COMMAND -->        run before the next block
    <!-- run by: tests/… -->       another test runs the commands of this block
    <!-- not run: REASON -->       no test runs the commands of this block
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.support.agent import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

COMMAND_SECONDS = 60.0
"""The time-out of a document's command."""
AS_USER = ("README.md", "docs/quickstart.md", "docs/how-to/migrate-from-spire.md")
"""Documents that tests/documents/test_walks.py runs in a clone, as an ordinary user."""
IN_MACHINE = tuple(
    f"docs/how-to/{name}.md"
    for name in (
        "systemd-service", "add-a-workload", "rotate-a-key", "backup-and-recovery", "upgrade",
    )
)  # fmt: skip
"""Documents that tests/documents/test_how_tos.py runs in a machine, as root."""
DIRECTIVES = {
    "terminal", "waits for", "exit code", "file", "setup", "run by", "not run",
}  # fmt: skip

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\s*$")
_DIRECTIVE = re.compile(r"^ *<!-- (?P<name>[a-z ]+): (?P<value>.*) -->$")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(?P<end>\w+)\1")


@dataclass(frozen=True, slots=True)
class Command:
    """A command's text, and the fragments that its output must contain."""

    text: str
    expected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document, with the directives above it."""

    document: Path
    line: int
    language: str
    lines: tuple[str, ...]
    directives: Mapping[str, str]
    setups: tuple[str, ...]

    @property
    def place(self) -> str:
        """The block's path and line, for messages."""
        return f"{os.path.relpath(self.document, REPOSITORY)}:{self.line}"

    @property
    def commands(self) -> tuple[Command, ...]:
        """The block's commands, each with the fragments below it."""
        found: list[tuple[list[str], list[str]]] = []
        lines = iter(self.lines)
        for line in lines:
            if line.startswith("$ "):
                found.append(([*_typed(line[2:], lines)], []))
            elif line.strip():
                found = found or [([], [])]
                found[-1][1].append(line)
        return tuple(Command("\n".join(typed), tuple(out)) for typed, out in found)


def documents() -> list[Path]:
    """Return every Markdown document of the root folder and of docs/."""
    return [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks(document: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document.

    Raises:
        AssertionError: a directive is unknown, or other text follows it.
    """
    directives: dict[str, str] = {}
    setups: list[str] = []
    lines = enumerate(document.read_text(encoding="utf-8").splitlines(), 1)
    for number, line in lines:
        if found := _DIRECTIVE.fullmatch(line):
            assert found["name"] in DIRECTIVES, f"{document}:{number}: unknown directive"
            if found["name"] == "setup":
                setups.append(found["value"])
            else:
                directives[found["name"]] = found["value"]
        elif fence := _FENCE.fullmatch(line):
            content = tuple(_content(lines, len(fence["indent"])))
            yield Block(document, number, fence["language"], content, directives, tuple(setups))
            directives, setups = {}, []
        elif line.strip():
            place = f"{document}:{number}"
            assert not directives, f"{place}: text between a directive and its block"


def _content(lines: Iterator[tuple[int, str]], indent: int) -> Iterator[str]:
    for _number, line in lines:
        if line.strip() == "```":
            return
        yield line[indent:]


def _typed(first: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines of a command: its first, continued lines and here-documents."""
    yield first
    if heredoc := _HEREDOC.search(first):
        for line in lines:
            yield line
            if line == heredoc["end"]:
                return
    while first.endswith("\\"):
        first = next(lines)
        yield first


def holds(line: str, fragment: str) -> bool:
    """Return whether a line of output contains a fragment; the number of spaces may differ."""
    parts = (re.escape(" ".join(part.split())) for part in fragment.split("…"))
    return re.search(" ?.*".join(parts), " ".join(line.split())) is not None


def missing(expected: Sequence[str], output: str) -> str | None:
    """Return the first fragment that is missing or out of order in the output."""
    lines = iter(output.splitlines())
    for fragment in expected:
        if not any(holds(line, fragment) for line in lines):
            return fragment
    return None


class Terminal:
    """A shell that runs one command after the other. Owns the shell's processes.

    Args:
        prefix: a command that executes the shell, as another user or in a machine.
        environment: the shell's environment; None: this process's.
        directory: the shell's working directory.
        seconds: the time-out of a command.
    """

    def __init__(
        self,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        seconds: float = COMMAND_SECONDS,
    ) -> None:
        self._seconds = seconds
        self._shell = subprocess.Popen(
            [*prefix, "bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
        self._number = 0

    def run(self, command: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and output.

        Raises:
            AssertionError: the shell ended, or the command timed out.
        """
        self._number += 1
        end = f"--- end of command {self._number}:"
        self._type(f"{{ {command}\n}} < /dev/null\nprintf '\\n%s %s\\n' '{end}' $?\n")
        lines, last = self._read_until(lambda line: line.startswith(end))
        assert last is not None, f"{command}: timed out, or the shell ended:\n{''.join(lines)}"
        return int(last.removeprefix(end)), "".join(lines)

    def start(self, command: str) -> None:
        """Start a command that keeps running."""
        self._type(f"{{ {command}\n}} < /dev/null\nexit\n")

    def wait_for(self, text: str) -> None:
        """Wait until the running command prints a line with this text.

        Raises:
            AssertionError: the command ended or timed out first.
        """
        lines, last = self._read_until(lambda line: holds(line, text))
        assert last is not None, f"{text!r} was not printed, but\n{''.join(lines)}"

    def close(self) -> None:
        """End the shell and its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGTERM)
        # The pipe closes when the last process has ended.
        self._read_until(lambda _line: False)
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        for pipe in (self._shell.stdin, self._shell.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text)
        self._shell.stdin.flush()

    def _read_until(self, is_last: Callable[[str], bool]) -> tuple[list[str], str | None]:
        """Return the lines before the last line, and the last line; None without a last line."""
        lines: list[str] = []
        timer = threading.Timer(self._seconds, os.killpg, (self._shell.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in self._shell.stdout or ():
                if is_last(line):
                    return lines, line
                lines.append(line)
        finally:
            timer.cancel()
            timer.join()
        return lines, None


class Reader:
    """Runs the blocks of documents in terminals. A context manager; owns the terminals."""

    def __init__(self, open_terminal: Callable[[], Terminal]) -> None:
        self._open = open_terminal
        self._terminals: dict[str, Terminal] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for terminal in self._terminals.values():
            terminal.close()

    def follow(self, document: Path) -> int:
        """Run the blocks of a document and return the number of commands.

        Raises:
            AssertionError: a command's exit code or output is not as documented.
        """
        return sum(self._do(block) for block in blocks(document))

    def _do(self, block: Block) -> int:
        directives = block.directives
        terminal = self._terminal(directives.get("terminal", ""))
        for setup in block.setups:
            code, output = terminal.run(setup)
            assert code == 0, f"{block.place}: setup: {setup}: {output}"
        if path := directives.get("file"):
            text = "\n".join(block.lines)
            code, output = terminal.run(f"cat > {path} <<'END OF FILE'\n{text}\nEND OF FILE")
            assert code == 0, f"{block.place}: {path}: {output}"
        if block.language != "console" or {"not run", "run by"} & directives.keys():
            return 0
        for command in block.commands:
            self._run(block, terminal, command)
        return sum(bool(command.text) for command in block.commands)

    def _run(self, block: Block, terminal: Terminal, command: Command) -> None:
        is_last = command == block.commands[-1]
        if is_last and (text := block.directives.get("waits for")):
            terminal.start(command.text)
            terminal.wait_for(text)
            return
        if not command.text:
            for fragment in command.expected:
                terminal.wait_for(fragment)
            return
        code, output = terminal.run(command.text)
        wanted = int(block.directives.get("exit code", "0")) if is_last else 0
        report = f"{block.place}: $ {command.text}\n{output}"
        assert code == wanted, f"{report}\nexit code {code}, documented is {wanted}"
        lacking = missing(command.expected, output)
        assert lacking is None, f"{report}\nthe output has no {lacking!r}"

    def _terminal(self, name: str) -> Terminal:
        if name not in self._terminals:
            self._terminals[name] = self._open()
        return self._terminals[name]
