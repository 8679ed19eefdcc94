"""An agent with socket activation: the test holds the listening socket (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import sys

from agent.kernel.sender import stamp_senders
from tests.support.agent import RunningAgent

_FIRST = 3


class ActivatedAgent(RunningAgent):
    """An agent with a public socket that stays open between stop and start, until `close`."""

    listener: socket.socket | None = None

    def start(self) -> None:
        """Start the agent with the socket; the first start creates it."""
        if self.listener is None:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.bind(str(self.socket))
            stamp_senders(self.listener)
            self.listener.listen(4096)
            number = self.listener.fileno()
            self._pass_fds = (number,)
            self._prefix = (sys.executable, "-m", "tests.support.activated", str(number))
        super().start()

    def close(self) -> None:
        """Close the socket and the agent (see RunningAgent.close)."""
        if self.listener is not None:
            self.listener.close()
        super().close()


if __name__ == "__main__":
    os.dup2(int(sys.argv[1]), _FIRST)
    passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "agent"}
    os.execve(sys.argv[2], sys.argv[2:], {**os.environ, **passed})  # noqa: S606
