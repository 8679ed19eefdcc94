"""The background tasks of the daemon, and the end of the daemon when one of them breaks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.errors import DefectError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from structlog.typing import FilteringBoundLogger


async def run_until(
    stop: asyncio.Event,
    tasks: Mapping[str, Coroutine[None, None, object]],
    log: FilteringBoundLogger,
) -> None:
    """Run the tasks, given by name, until `stop` is set; then cancel them.

    A task that raises sets `stop`: the daemon stops in order, and the service manager starts it
    again. The log has the traceback, under the name of the task.

    Raises:
        DefectError: a task raised. The message names the first.
    """
    defects: list[str] = []

    async def supervise(name: str, task: Coroutine[None, None, object]) -> None:
        try:
            await task
        except Exception as error:
            log.exception("internal error", where=name)
            defects.append(f"the task {name!r} ended with {type(error).__name__}")
            stop.set()

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(supervise(name, task), name=name) for name, task in tasks.items()
        ]
        await stop.wait()
        for each in running:
            each.cancel()
    if defects:
        raise DefectError(
            f"{defects[0]}: this is a defect of vouchd; the log has the traceback, please report it"
        )
