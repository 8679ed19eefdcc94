"""Run blocking file operations in daemon threads.

A file system that hangs (NFS, FUSE) blocks every operation on it. `asyncio.to_thread` would then
keep the process from ending: its threads are joined at exit, daemon threads are not.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def run_in_daemon_thread(
    function: Callable[[], T],
    *,
    warn: Callable[[], None] = lambda: None,
    warn_after: float = 30.0,
) -> T:
    """Return what `function` returns; call `warn` once if that takes longer than `warn_after` s.

    A caller that is cancelled abandons the thread, which ends when the file system answers.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            _post(loop, _unless_done(future, future.set_exception), error)
        else:
            _post(loop, _unless_done(future, future.set_result), result)

    Thread(target=run, name="files", daemon=True).start()
    late = loop.call_later(warn_after, warn)
    try:
        return await future
    finally:
        late.cancel()


def _unless_done(future: asyncio.Future[T], finish: Callable[..., None]) -> Callable[..., None]:
    def finish_once(value: object) -> None:
        if not future.done():  # cancelled meanwhile
            finish(value)

    return finish_once


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], value: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: the agent is stopping
        loop.call_soon_threadsafe(callback, value)
