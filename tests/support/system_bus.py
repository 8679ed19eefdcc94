"""A D-Bus of the test with a fake service manager; the test sets its answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Self

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

SYSTEMD = "org.freedesktop.systemd1"
UNIT = f"/{SYSTEMD.replace('.', '/')}/unit/web_2eservice"


class SystemBus:
    """A dbus-daemon with the manager's connection to it. Owns both.

    `units` maps PIDs to units, at first this process to web.service. `properties` applies to each
    unit. `methods` are the methods that the manager implements.
    """

    def __init__(self) -> None:
        self._daemon = subprocess.Popen(
            ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._daemon.stdout is not None
        self.address = self._daemon.stdout.readline().strip()
        self.units = {os.getpid(): UNIT}
        self.properties = {
            "Unit.Id": Variant("s", "web.service"),
            "Unit.FragmentPath": Variant("s", "/etc/systemd/system/web.service"),
            "Unit.InvocationID": Variant("ay", b"\xab" * 16),
            "Service.Slice": Variant("s", "system.slice"),
        }
        self.methods = {"GetUnitByPIDFD", "GetUnitByPID", "Get"}
        self.error: str | None = None
        self.asked: list[str] = []

    async def __aenter__(self) -> Self:
        self._bus = await MessageBus(bus_address=self.address, negotiate_unix_fd=True).connect()
        self._bus.add_message_handler(self._answer)
        await self._bus.request_name(SYSTEMD)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self.stop()

    def stop(self) -> None:
        """End the bus. A second call has no effect."""
        self._daemon.terminate()
        self._daemon.wait()
        if self._daemon.stdout is not None:
            self._daemon.stdout.close()

    def _answer(self, message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or not message.member:
            return None
        self.asked.append(message.member)
        pid = 0 if message.member == "Get" else _pid(message)
        if message.member not in self.methods:
            return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "no")
        if self.error is not None:
            return Message.new_error(message, self.error, "for a reason")
        return self._property(message) if message.member == "Get" else self._unit(message, pid)

    def _property(self, message: Message) -> Message:
        interface, name = message.body
        value = self.properties[f"{interface.rpartition('.')[2]}.{name}"]
        return Message.new_method_return(message, "v", [value])

    def _unit(self, message: Message, pid: int) -> Message:
        unit = self.units.get(pid)
        if unit is None:
            return Message.new_error(message, f"{SYSTEMD}.NoUnitForPID", "no unit")
        if message.member == "GetUnitByPID":
            return Message.new_method_return(message, "o", [unit])
        return Message.new_method_return(message, "osay", [unit, "web.service", b"\x01" * 16])


def _pid(message: Message) -> int:
    if message.signature == "u":
        return int(message.body[0])
    [descriptor] = message.unix_fds
    try:
        lines: Any = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
