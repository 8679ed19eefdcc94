"""What a service manager hears, on a socket of the test's own."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import StartupError
from agent.service import sd_notify
from agent.service.sd_notify import ServiceManager
from tests.conftest import AgentFactory
from tests.support.agent import PATIENCE_SECONDS, entry_for_me


class Ears:
    """The manager's end. `address` is what NOTIFY_SOCKET says."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        self._socket.settimeout(PATIENCE_SECONDS)

    def hear(self) -> dict[str, str]:
        """The next message."""
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def hear_until(self, field: str, holds: Callable[[str], bool] = bool) -> list[dict[str, str]]:
        """All messages up to one whose field is like that."""
        heard = [self.hear()]
        while not holds(heard[-1].get(field, "")):
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def ears(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ears]:
    path = f"{tmp_path}/notify" if request.param == "path" else f"@vouchd-test-{os.getpid()}"
    ears = Ears(path)
    yield ears
    ears.close()


@pytest.fixture
def manager(ears: Ears) -> Iterator[ServiceManager]:
    manager = ServiceManager(ears.address)
    yield manager
    manager.close()


def test_a_message_has_a_line_for_each_field_whatever_is_in_it(
    ears: Ears, manager: ServiceManager
) -> None:
    manager.tell(READY=1, STATUS="two\nlines \udcff")
    assert ears.hear() == {"READY": "1", "STATUS": "two lines ?"}


def test_the_variables_are_not_handed_on(ears: Ears) -> None:
    environment = {
        "NOTIFY_SOCKET": ears.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    manager = ServiceManager.take(environment)
    assert environment == {"PATH": "/bin"}
    assert manager.watchdog_seconds == 3
    manager.close()


def test_a_watchdog_of_another_process_is_not_fed(ears: Ears) -> None:
    manager = ServiceManager.take(
        {"NOTIFY_SOCKET": ears.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    )
    assert manager.watchdog_seconds is None
    manager.close()


async def test_without_a_manager_nobody_is_told() -> None:
    manager = ServiceManager.take({})
    manager.tell(READY=1)
    await manager.feed_watchdog()
    manager.close()


def test_an_address_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"NOTIFY_SOCKET={tmp_path}/none cannot be reached"):
        ServiceManager(f"{tmp_path}/none")


def test_a_manager_that_is_gone_is_no_error(ears: Ears, manager: ServiceManager) -> None:
    ears.close()
    manager.tell(READY=1)


async def test_the_watchdog_is_fed_twice_as_often_as_has_to_be(ears: Ears) -> None:
    manager = ServiceManager(ears.address, watchdog_seconds=0.1)
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(manager.feed_watchdog())
        for _ in range(3):
            assert await asyncio.to_thread(ears.hear) == {"WATCHDOG": "1"}
        feeding.cancel()
    assert time.monotonic() - began >= 0.1
    manager.close()


async def test_a_status_is_told_when_it_is_another(
    ears: Ears, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "STATUS_SECONDS", 0)
    status = iter(["a", "a", "a", "b"])
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(manager.follow(lambda: next(status, "b")))
        assert await asyncio.to_thread(ears.hear) == {"STATUS": "a"}
        assert await asyncio.to_thread(ears.hear) == {"STATUS": "b"}
        following.cancel()


def test_a_failure_is_told_with_its_number(ears: Ears, manager: ServiceManager) -> None:
    def fail() -> None:
        raise StartupError("no room") from OSError(28, "No space left on device")

    with pytest.raises(StartupError), manager.told_of_failure():
        fail()
    assert ears.hear() == {"STATUS": "failed: no room", "ERRNO": "28"}


def test_an_agent_tells_of_its_life(agent_factory: AgentFactory, ears: Ears) -> None:
    watched = {"NOTIFY_SOCKET": ears.address, "WATCHDOG_USEC": "200000"}
    agent = agent_factory(env=watched)
    [*_, ready] = ears.hear_until("READY")
    assert ready["STATUS"] == "serving 1 entries to 0 callers"
    ears.hear_until("WATCHDOG")
    before = time.monotonic_ns() // 1000
    agent.entries.write_text(entry_for_me() + "  - broken\n")
    agent.hang_up()
    [*_, reloading] = ears.hear_until("RELOADING")
    assert before < int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    [*_, ready] = ears.hear_until("READY")
    assert ready["STATUS"].startswith("serving 1 entries to 0 callers; entries not reloaded")
    assert f"{agent.entries}:4:" in ready["STATUS"]
    agent.stop()
    ears.hear_until("STOPPING")


def test_settings_with_a_mistake_are_in_the_status(agent_factory: AgentFactory, ears: Ears) -> None:
    agent = agent_factory(env={"NOTIFY_SOCKET": ears.address})
    ears.hear_until("READY")
    agent.config.write_text(agent.config.read_text() + "entrys: []\n")
    agent.hang_up()
    [*_, ready] = ears.hear_until("READY")
    assert f"settings not reloaded: {agent.config}:" in ready["STATUS"]
