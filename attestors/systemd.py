"""The `systemd` attestor: the unit that a process belongs to, by the service manager's word.

    systemd:id:payments.service
    systemd:fragment_path:/etc/systemd/system/payments.service
    systemd:slice:system.slice
    systemd:invocation_id:<32 hex digits, another for each start of the unit>

The manager is asked with the process's pidfd, so that no other process can be meant (systemd 254).
Older ones are asked by PID, and the process must still be alive when they have answered. Units of a
user's own manager are not known to the system's: their processes belong to `user@UID.service`.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError, DBusError
from pydantic import AfterValidator, BaseModel, Field

from attestors.api import AttestorError, Findings, Options, Selector, SelectorKind
from attestors.lib.once import SharedWork
from attestors.lib.processes import is_alive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attestors.api import AttestorContext, WorkloadRef

ANSWER_SECONDS = 2.0
# The library fails a call once the socket takes no more, which is at some hundred small messages.
CALLS_AT_ONCE = 32
_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = "/org/freedesktop/systemd1"
_MANAGERS_WORD = "systemd, and the cgroup"
_NO_UNIT = frozenset({f"{_SYSTEMD}.NoUnitForPID", f"{_SYSTEMD}.NoSuchUnit"})
# Before a user other than root learns that there is no such method, the bus rejects the message:
# older policies do not name it.
_NO_METHOD = frozenset(
    {"org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.AccessDenied"}
)
# Kinds of units that processes are in, and the interface that has their `Slice`.
_INTERFACES = {
    suffix: f"{_SYSTEMD}.{suffix.capitalize()}"
    for suffix in ("service", "scope", "socket", "mount", "swap")
}


def _an_address(text: str) -> str:
    if not re.fullmatch(r"unix:(path|abstract)=[^,;]+(,guid=[0-9a-f]+)?", text):
        raise ValueError(
            f"{text!r} is not the address of a bus, such as unix:path=/run/dbus/system_bus_socket"
        )
    return text


class SystemdOptions(Options):
    """Options of the `systemd` attestor."""

    bus: Annotated[str, AfterValidator(_an_address)] = Field(
        default="unix:path=/run/dbus/system_bus_socket",
        description="The D-Bus address of the system bus.",
    )


class _NoUnitError(Exception):
    """The process is in none."""


class SystemdAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "systemd"
    selectors: ClassVar[tuple[SelectorKind, ...]] = (
        SelectorKind("systemd:id:payments.service", "the process is in this unit", _MANAGERS_WORD),
        SelectorKind(
            "systemd:fragment_path:/etc/systemd/system/payments.service",
            "the unit is defined in this file",
            _MANAGERS_WORD,
        ),
        SelectorKind("systemd:slice:system.slice", "the unit is in this slice", _MANAGERS_WORD),
        SelectorKind(
            "systemd:invocation_id:<32 hex digits>",
            "this is the present run of the unit; each start has another",
            _MANAGERS_WORD,
        ),
    )
    Options: ClassVar[type[BaseModel]] = SystemdOptions
    timeout: ClassVar[float] = 2 * ANSWER_SECONDS
    # The unit is a matter of the cgroup, which has to stay the same.
    reuse_seconds: ClassVar[float] = 30.0
    reuse_across_connections: ClassVar[bool] = False

    def __init__(self, options: SystemdOptions, _context: AttestorContext) -> None:
        self._bus = _Bus(options.bus)
        self._knows_pidfds = True

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                unit = await self._unit(workload)
                facts = await self._facts(unit)
        except _NoUnitError:
            return Findings()
        except TimeoutError as error:
            raise AttestorError("systemd does not answer on the system bus") from error
        return Findings(frozenset(Selector(self.name, fact) for fact in facts))

    async def close(self) -> None:
        """See Attestor.close."""
        await self._bus.close()

    async def _unit(self, workload: WorkloadRef) -> str:
        """The D-Bus path of its unit."""
        if self._knows_pidfds:
            try:
                answer = await self._bus.call(
                    _MANAGER, f"{_SYSTEMD}.Manager", "GetUnitByPIDFD", "h", [0], [workload.pidfd]
                )
                return str(answer[0])
            except _UnknownMethodError:
                self._knows_pidfds = False
        answer = await self._bus.call(
            _MANAGER, f"{_SYSTEMD}.Manager", "GetUnitByPID", "u", [workload.pid]
        )
        # Alive now means that the PID was its own all the while.
        if not is_alive(workload.pidfd):
            raise AttestorError("the process exited")
        return str(answer[0])

    async def _facts(self, unit: str) -> set[str]:
        general = f"{_SYSTEMD}.Unit"
        name, fragment, invocation = await asyncio.gather(
            *(self._property(unit, general, key) for key in ("Id", "FragmentPath", "InvocationID"))
        )
        interface = _INTERFACES.get(str(name).rpartition(".")[2])
        facts = {
            "id": name,
            "fragment_path": fragment,
            "invocation_id": bytes(invocation).hex(),
            "slice": await self._property(unit, interface, "Slice") if interface else "",
        }
        return {f"{key}:{value}" for key, value in facts.items() if value}

    async def _property(self, unit: str, interface: str, name: str) -> Any:
        [variant] = await self._bus.call(
            unit, "org.freedesktop.DBus.Properties", "Get", "ss", [interface, name]
        )
        return variant.value


class _UnknownMethodError(AttestorError):
    """This systemd is older than the method, or it is not for us."""


class _Bus:
    """Owns the connection to the system bus, made when first needed, and again when lost."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connected: MessageBus | None = None
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._connecting: SharedWork[None, MessageBus] = SharedWork()

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[Any],
        descriptors: Sequence[int] = (),
    ) -> list[Any]:
        """Call a method of systemd's.

        Raises:
            _NoUnitError, _UnknownMethodError: by systemd's answer.
            AttestorError: any other error.
        """
        bus = self._connected
        if bus is None or not bus.connected:
            bus = self._connected = await self._connecting.get(None, self._connect)
        message = Message(
            destination=_SYSTEMD,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
            unix_fds=list(descriptors),
        )
        try:
            async with self._calls:
                answer = await bus.call(message)
        except (DBusError, EOFError, OSError) as error:
            raise AttestorError(f"the system bus broke off: {error}") from error
        if answer is None or answer.message_type is MessageType.ERROR:
            raise _refusal(answer)
        return list(answer.body)

    async def close(self) -> None:
        await self._connecting.close()
        if self._connected is not None and self._connected.connected:
            self._connected.disconnect()
            await self._connected.wait_for_disconnect()  # type: ignore[no-untyped-call]

    async def _connect(self) -> MessageBus:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await MessageBus(bus_address=self._address, negotiate_unix_fd=True).connect()
        except (OSError, EOFError, AuthError, DBusError, ValueError) as error:
            raise AttestorError(
                f"the system bus at {self._address} cannot be reached: {error}"
            ) from error


def _refusal(answer: Message | None) -> Exception:
    name = None if answer is None else answer.error_name
    if name in _NO_UNIT:
        return _NoUnitError()
    text = str(answer.body[0])[:200] if answer is not None and answer.body else ""
    kind = _UnknownMethodError if name in _NO_METHOD else AttestorError
    return kind(f"systemd refuses: {name} {text}".strip())
