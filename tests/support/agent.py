"""A real agent in its own process, started by the `run` command."""

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
SAFETY_SECONDS = 30.0
"""The time-out of each wait for an event; a correct agent is far faster."""


def entry_for_me(path: str = "/test/me", **fields: object) -> str:
    """Return an entry file with one entry for this process's UID; `fields` are further keys."""
    lines = [f"  - spiffe_id: {path}", f"    selectors: [unix:uid:{os.getuid()}]"]
    lines += [f"    {name}: {value}" for name, value in fields.items()]
    return "\n".join(["entries:", *lines, ""])


class RunningAgent:
    """`python -m agent run` on a socket in its own directory.

    Owns the process, the thread that reads its log, and the directory; `close` ends all three.

    Args:
        entries: the text of the entry file.
        config: further lines of agent.yaml.
        env: further environment variables of the agent.
        prefix: a command that executes the agent, such as `setpriv` or `unshare`.
        data_dir: the directory of its keys.
        new_session: start a session, so that signals of the terminal do not reach the agent.
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
        # A short path: unix(7) allows 107 bytes. Mode 0755: other users connect too.
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
        """The value of SPIFFE_ENDPOINT_SOCKET for this agent."""
        return endpoint_uri(self.socket)

    @property
    def pid(self) -> int:
        """The agent's PID."""
        return self._process.pid

    @property
    def log(self) -> str:
        """The output of all starts on stderr so far."""
        with self._news:
            return "".join(self._lines)

    def start(self) -> None:
        """Start or restart the agent and wait for its ready line."""
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
        """Wait for a log line that contains `text` and return it.

        Args:
            text: a part of the line.
            since: the number of lines to skip, from the first start.

        Raises:
            AssertionError: the agent ended, or no such line within SAFETY_SECONDS.
        """

        def found() -> str | None:
            return next((line for line in self._lines[since:] if text in line), None)

        with self._news:
            self._news.wait_for(
                lambda: found() or not self._reader.is_alive(), timeout=SAFETY_SECONDS
            )
            line = found()
        assert line is not None, f"the agent did not log {text!r}:\n{self.log}"
        return line

    def hang_up(self) -> None:
        """Send SIGHUP: reload."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status. A second call has no effect."""
        self._process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """Send SIGKILL, as the kernel does when memory runs out."""
        self._process.kill()
        self._ended()

    def close(self) -> None:
        """Stop the agent and remove its directory.

        Raises:
            AssertionError: the exit status is not 0, or the log has a traceback.
        """
        killed = self._process.poll() == -signal.SIGKILL
        status = self.stop()
        secrecy.add_keys_below(self.directory)
        shutil.rmtree(self.directory)
        if isinstance(sys.exception(), (KeyboardInterrupt, SystemExit)):
            return  # Ctrl-C may have reached the agent too
        assert killed or status == 0, f"the agent ended with {status}:\n{self.log}"
        assert "Traceback" not in self.log, self.log

    def _program(self) -> list[str]:
        return ["agent", "run", "-c", str(self.config)]

    def _ended(self) -> int:
        status = self._process.wait(SAFETY_SECONDS)
        self._reader.join(SAFETY_SECONDS)
        if self._process.stderr is not None:
            self._process.stderr.close()
        return status

    def _read_log(self) -> None:
        stderr = self._process.stderr
        for line in stderr or ():
            secrecy.record(line)
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()
