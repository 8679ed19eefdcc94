"""Notifications to a service manager, on a socket of the test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import StartupError
from agent.service.sd_notify import SHORTEST_FEED_SECONDS, STATUS_SECONDS, ServiceManager
from tests.support.notify_socket import NotifySocket


class Sleep:
    """Records the waits, and ends each at the next turn of the loop; cancels after `times`."""

    def __init__(self, times: int) -> None:
        self.seconds: list[float] = []
        self._times = times

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self._times:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


@pytest.fixture
def manager(notify_socket: NotifySocket) -> Iterator[ServiceManager]:
    manager = ServiceManager(notify_socket.address)
    yield manager
    manager.close()


def test_a_message_has_one_line_for_each_field_whatever_its_value(
    notify_socket: NotifySocket, manager: ServiceManager
) -> None:
    manager.tell(READY=1, STATUS="two\nlines \udcff")
    assert notify_socket.receive() == {"READY": "1", "STATUS": "two lines ?"}


def test_child_processes_do_not_inherit_the_variables(notify_socket: NotifySocket) -> None:
    environment = {
        "NOTIFY_SOCKET": notify_socket.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    manager = ServiceManager.take(environment)
    assert environment == {"PATH": "/bin"}
    assert manager.watchdog_seconds == 3
    manager.close()


def test_the_watchdog_of_another_process_is_not_fed(notify_socket: NotifySocket) -> None:
    manager = ServiceManager.take(
        {
            "NOTIFY_SOCKET": notify_socket.address,
            "WATCHDOG_USEC": "3000000",
            "WATCHDOG_PID": "1",
        }
    )
    assert manager.watchdog_seconds is None
    manager.close()


@pytest.mark.parametrize(
    "period", ["", "0", "000", "-1", "1.5", "two", str(2**64 - 1), "9" * 30, "9" * 5000]
)
async def test_a_watchdog_period_that_is_none_starts_no_loop(period: str) -> None:
    """sd_watchdog_enabled(3) takes 0 and infinity for no watchdog. 0 made a busy loop."""
    manager = ServiceManager.take({"WATCHDOG_USEC": period})
    assert manager.watchdog_seconds is None
    await manager.feed_watchdog()
    manager.close()


async def test_a_watchdog_period_of_a_microsecond_leaves_the_loop_its_time() -> None:
    sleep = Sleep(times=1)
    manager = ServiceManager(watchdog_seconds=1e-6, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await manager.feed_watchdog()
    assert sleep.seconds == [SHORTEST_FEED_SECONDS]


async def test_the_watchdog_is_fed_twice_in_each_period(notify_socket: NotifySocket) -> None:
    sleep = Sleep(times=3)
    manager = ServiceManager(notify_socket.address, watchdog_seconds=30.0, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await manager.feed_watchdog()
    assert sleep.seconds == [15.0, 15.0, 15.0]
    assert [notify_socket.receive() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3
    manager.close()


async def test_without_a_manager_nothing_is_sent() -> None:
    manager = ServiceManager.take({})
    manager.tell(READY=1)
    await manager.feed_watchdog()
    manager.close()


def test_an_address_without_a_listener_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"NOTIFY_SOCKET={tmp_path}/none cannot be reached"):
        ServiceManager(f"{tmp_path}/none")


def test_a_manager_that_went_away_is_no_error(
    notify_socket: NotifySocket, manager: ServiceManager
) -> None:
    notify_socket.close()
    manager.tell(READY=1)


async def test_the_status_line_is_sent_only_when_it_changes(notify_socket: NotifySocket) -> None:
    sleep, status = Sleep(times=5), iter(["a", "a", "a", "b"])
    manager = ServiceManager(notify_socket.address, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await manager.follow(lambda: next(status))
    assert notify_socket.receive() == {"STATUS": "a"}
    assert notify_socket.receive() == {"STATUS": "b"}
    assert set(sleep.seconds) == {STATUS_SECONDS}
    manager.close()


def test_a_failure_is_sent_with_its_errno(
    notify_socket: NotifySocket, manager: ServiceManager
) -> None:
    def fail() -> None:
        raise StartupError("no room") from OSError(28, "No space left on device")

    with pytest.raises(StartupError), manager.told_of_failure():
        fail()
    assert notify_socket.receive() == {"STATUS": "failed: no room", "ERRNO": "28"}
