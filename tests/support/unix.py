"""The unix attestor with counted and delayed digests of executables."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self

from attestors.api import AttestorContext
from attestors.unix import DIGEST_SECONDS, Digests, UnixAttestor, UnixOptions, digest_of
from tests.support.findings import until

if TYPE_CHECKING:
    from agent.kernel.caller import Caller
    from attestors.api import Findings
    from attestors.unix import FileKey


class CountedDigests:
    """A unix attestor; each read of an executable is counted and waits for `go`."""

    def __init__(self, seconds: float = DIGEST_SECONDS) -> None:
        self.count = 0
        self.go = threading.Event()
        self.go.set()
        self._digests = Digests(seconds, self._read)
        self.attestor = UnixAttestor(UnixOptions(), AttestorContext(), self._digests)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.go.set()
        await self.attestor.close()

    async def begun(self) -> None:
        """Wait until a read has begun."""
        await until(lambda: self.count)

    async def ended(self) -> None:
        """Wait until no read is in progress, and its result is known."""
        await until(lambda: not self._digests.waiting)
        await asyncio.sleep(0)

    def _read(self, descriptor: int, expected: FileKey) -> str:
        self.count += 1
        assert self.go.wait(10)
        return digest_of(descriptor, expected)


async def find(attestor: UnixAttestor, caller: Caller) -> Findings:
    """Attest the caller's process."""
    with caller.open_proc() as view:
        return await attestor.attest(view)


def values(findings: Findings, kind: str) -> set[str]:
    """The values of the selectors of one kind, without the kind."""
    prefix = kind + ":"
    return {
        selector.value.removeprefix(prefix)
        for selector in findings.selectors
        if selector.value.startswith(prefix)
    }
