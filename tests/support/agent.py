"""A real agent in a process of its own, as an operator would start it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from agent.client.endpoint import endpoint_uri
from tests.support import secrecy

REPOSITORY = Path(__file__).resolve().parents[2]
TRUST_DOMAIN = "example.org"
PATIENCE_SECONDS = 30.0
"""Nothing here takes this long, unless it is broken."""


def entry_for_me(path: str = "/test/me", **fields: object) -> str:
    """A file of one entry that whoever runs the tests matches; `fields` are further lines."""
    lines = [f"  - spiffe_id: {path}", f"    selectors: [unix:uid:{os.getuid()}]"]
    lines += [f"    {name}: {value}" for name, value in fields.items()]
    return "\n".join(["entries:", *lines, ""])


class RunningAgent:
    """`python -m agent run` on a socket in a directory of its own.

    It owns the process, the thread that reads its log, and the directory: `close` ends all three.

    Args:
        entries: the text of the entries file.
        config: further lines for agent.yaml, beside the paths, the trust domain and a debug log.
        env: further environment variables of the agent.
        prefix: a command that starts it, as `setpriv` and `unshare` do.
        data_dir: where it keeps its keys.
        new_session: signals of the terminal, and of this process's group, do not reach it.
    """

    _pass_fds: tuple[int, ...] = ()
    _directory_prefix = "vouchd-"

    def __init__(
        self,
        entries: str = "",
        *,
        config: str = "",
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        data_dir: str = "data",
        new_session: bool = False,
    ) -> None:
        # Short, since a socket's path has at most 107 bytes; open, so that other users get through.
        self.directory = Path(tempfile.mkdtemp(prefix=self._directory_prefix, dir="/tmp"))
        self.directory.chmod(0o755)
        self.socket = self.directory / "agent.sock"
        self.admin_socket = self.directory / "admin.sock"
        self.config = self.directory / "agent.yaml"
        self.entries = self.directory / "entries.yaml"
        self.entries.write_text(entries)
        self.config.write_text(
            f"trust_domain: {TRUST_DOMAIN}\ndata_dir: {data_dir}\nsocket_path: agent.sock\n"
            f"admin_socket_path: admin.sock\nentries: [{self.entries.name}]\n{config}\n"
        )
        self._env = {**os.environ, **(env or {})}
        self._prefix = prefix
        self._new_session = new_session
        self._lines: list[str] = []
        self._news = threading.Condition()
        self.start()

    @property
    def address(self) -> str:
        """What SPIFFE_ENDPOINT_SOCKET has to say to reach it."""
        return endpoint_uri(self.socket)

    @property
    def pid(self) -> int:
        """The agent's process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything it has written to stderr so far, over all its starts."""
        with self._news:
            return "".join(self._lines)

    def start(self) -> None:
        """Start it (again) and wait until it says that it is ready."""
        with self._news:
            seen = len(self._lines)
        self._process = subprocess.Popen(
            [*self._prefix, sys.executable, "-m", *self._program()],
            cwd=REPOSITORY,
            env=self._env,
            pass_fds=self._pass_fds,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=self._new_session,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            self.wait_for_log(" ready on", since=seen)
        except BaseException:
            self.kill()
            self.close()
            raise

    def wait_for_log(self, text: str, *, since: int = 0) -> str:
        """Wait for a line that holds `text` and return it.

        Args:
            text: what the line has to hold.
            since: the number of lines, from the start, that do not count.

        Raises:
            AssertionError: the agent has ended, or took too long.
        """

        def found() -> str | None:
            return next((line for line in self._lines[since:] if text in line), None)

        with self._news:
            self._news.wait_for(
                lambda: found() or not self._reader.is_alive(), timeout=PATIENCE_SECONDS
            )
            line = found()
        assert line is not None, f"the agent did not say {text!r}:\n{self.log}"
        return line

    def hang_up(self) -> None:
        """Tell it to reload."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """Stop it as an operator does; the exit status. Again is harmless."""
        self._process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """End it without a chance to tidy up, as the kernel does when memory runs out."""
        self._process.kill()
        self._ended()

    def close(self) -> None:
        """Stop it and remove its directory.

        Raises:
            AssertionError: it did not stop in order, or something in it broke that nobody expected.
        """
        killed = self._process.poll() == -signal.SIGKILL
        status = self.stop()
        secrecy.know_keys_below(self.directory)
        shutil.rmtree(self.directory)
        if isinstance(sys.exception(), (KeyboardInterrupt, SystemExit)):
            return  # who interrupts the tests may have interrupted the agent as well
        assert killed or status == 0, f"the agent ended with {status}:\n{self.log}"
        assert "Traceback" not in self.log, self.log

    def _program(self) -> list[str]:
        return ["agent", "run", "-c", str(self.config)]

    def _ended(self) -> int:
        status = self._process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        if self._process.stderr is not None:
            self._process.stderr.close()
        return status

    def _read_log(self) -> None:
        stderr = self._process.stderr
        for line in stderr or ():
            secrecy.hear(line)
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()
