"""The notifications of a whole agent to its service manager."""

from __future__ import annotations

from tests.conftest import AgentFactory
from tests.support.agent import entry_for_me
from tests.support.notify_socket import NotifySocket, notify_socket

__all__ = ["notify_socket"]


def test_an_agent_notifies_ready_watchdog_reloading_and_stopping(
    agent_factory: AgentFactory, notify_socket: NotifySocket
) -> None:
    agent = agent_factory(env={"NOTIFY_SOCKET": notify_socket.address, "WATCHDOG_USEC": "200000"})
    ready = notify_socket.receive_until("READY")
    assert ready["STATUS"] == "serving 1 entries to 0 callers"
    notify_socket.receive_until("WATCHDOG")
    agent.entries.write_text(entry_for_me() + "  - broken\n")
    agent.hang_up()
    reloading = notify_socket.receive_until("RELOADING")
    assert reloading["MONOTONIC_USEC"].isdecimal()
    ready = notify_socket.receive_until("READY")
    assert ready["STATUS"].startswith("serving 1 entries to 0 callers; entries not reloaded")
    assert f"{agent.entries}:4:" in ready["STATUS"]
    agent.stop()
    notify_socket.receive_until("STOPPING")


def test_the_status_line_names_the_mistake_in_the_settings(
    agent_factory: AgentFactory, notify_socket: NotifySocket
) -> None:
    agent = agent_factory(env={"NOTIFY_SOCKET": notify_socket.address})
    notify_socket.receive_until("READY")
    agent.config.write_text(agent.config.read_text() + "entrys: []\n")
    agent.hang_up()
    ready = notify_socket.receive_until("READY")
    assert f"settings not reloaded: {agent.config}:" in ready["STATUS"]
