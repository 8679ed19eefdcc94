"""The `systemd` attestor: the process's unit, as described by the service manager.

    systemd:id:payments.service
    systemd:fragment_path:/etc/systemd/system/payments.service
    systemd:slice:system.slice
    systemd:invocation_id:<32 hex digits, new at each start of the unit>

The attestor asks with the process's pidfd, which names no other process (systemd 254). It asks an
older systemd by PID, and checks afterwards that the process is still alive. The system's manager
does not know the units of a user's manager: their processes belong to `user@UID.service`.
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
# dbus-fast fails a call when the socket's buffer is full: after some hundred small messages.
CALLS_AT_ONCE = 32
# Of the text of an error from the bus.
_EXCERPT_CHARS = 200
_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = "/org/freedesktop/systemd1"
_BASIS = "systemd, and the cgroup"
_NO_UNIT = frozenset({f"{_SYSTEMD}.NoUnitForPID", f"{_SYSTEMD}.NoSuchUnit"})
# Older bus policies do not name the method: for users other than root the bus rejects the call
# before systemd says that it has no such method.
_NO_METHOD = frozenset(
    {"org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.AccessDenied"}
)
# The unit types that have processes, and the D-Bus interface with the property `Slice`.
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
    """The process belongs to no unit."""


class _UnknownMethodError(AttestorError):
    """This systemd is older than the method, or the bus does not allow it to the agent's user."""


class SystemdAttestor:
    """See the module's docstring."""

    name: ClassVar[str] = "systemd"
    selectors: ClassVar[tuple[SelectorKind, ...]] = (
        SelectorKind("systemd:id:payments.service", "the process is in this unit", _BASIS),
        SelectorKind(
            "systemd:fragment_path:/etc/systemd/system/payments.service",
            "the unit is defined in this file",
            _BASIS,
        ),
        SelectorKind("systemd:slice:system.slice", "the unit is in this slice", _BASIS),
        SelectorKind(
            "systemd:invocation_id:<32 hex digits>",
            "this is the present run of the unit; each start has another",
            _BASIS,
        ),
    )
    Options: ClassVar[type[BaseModel]] = SystemdOptions
    timeout: ClassVar[float] = 2 * ANSWER_SECONDS
    # The cgroup decides the unit, and a changed cgroup ends the reuse.
    reuse_seconds: ClassVar[float] = 30.0
    reuse_across_connections: ClassVar[bool] = False

    def __init__(
        self,
        options: SystemdOptions,
        _context: AttestorContext,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._bus = _Bus(options.bus, answer_seconds)
        self._answer_seconds = answer_seconds
        self._knows_pidfds = True

    async def attest(self, workload: WorkloadRef) -> Findings:
        """See Attestor.attest."""
        try:
            async with asyncio.timeout(self._answer_seconds):
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
        """Ask for the D-Bus path of the process's unit."""
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
        # A process that is alive now had the PID during the call.
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


class _Bus:
    """The connection to the system bus, which it owns.

    It connects at the first call, and again at the first call after the connection broke.
    """

    def __init__(self, address: str, answer_seconds: float) -> None:
        self._address = address
        self._answer_seconds = answer_seconds
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
        """Call a method of systemd.

        Raises:
            _NoUnitError, _UnknownMethodError: by the name of the D-Bus error.
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
            raise AttestorError(f"the connection to the system bus broke: {error}") from error
        if answer is None or answer.message_type is MessageType.ERROR:
            raise _refusal(answer)
        return list(answer.body)

    async def close(self) -> None:
        """Disconnect."""
        await self._connecting.close()
        if self._connected is not None and self._connected.connected:
            self._connected.disconnect()
            await self._connected.wait_for_disconnect()  # type: ignore[no-untyped-call]

    async def _connect(self) -> MessageBus:
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await MessageBus(bus_address=self._address, negotiate_unix_fd=True).connect()
        except (OSError, EOFError, AuthError, DBusError, ValueError) as error:
            raise AttestorError(
                f"cannot connect to the system bus at {self._address}: {error}"
            ) from error


def _refusal(answer: Message | None) -> Exception:
    """Return the exception for a D-Bus error."""
    name = None if answer is None else answer.error_name
    if name in _NO_UNIT:
        return _NoUnitError()
    text = str(answer.body[0])[:_EXCERPT_CHARS] if answer is not None and answer.body else ""
    kind = _UnknownMethodError if name in _NO_METHOD else AttestorError
    return kind(f"systemd refused the call: {name} {text}".strip())
