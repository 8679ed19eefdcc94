"""Fixtures of all tests: running agents, and checks for leaks of descriptors, tasks and secrets."""

from __future__ import annotations

import asyncio
import gc
import inspect
import resource
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import pytest
from hypothesis import HealthCheck, settings

from agent.kernel.caller import Caller, identify
from agent.spiffe import keys
from tests.support import secrecy
from tests.support.agent import RunningAgent, entry_for_me

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Hypothesis would fail a test because the machine is busy.
settings.register_profile("vouchd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vouchd")

# gRPC's C core opens these descriptors on first use and keeps them until the process ends.
_KEPT_BY_GRPC = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")


# Characters. For a longer parameter the test ID has the argument's name.
LONGEST_ID = 40


class AgentFactory(Protocol):
    """Starts agents; each is stopped at the end of the test."""

    def __call__(self, entries: str = ..., **options: Any) -> RunningAgent:
        """Start an agent (see RunningAgent). The default entry gives this user /test/me."""
        ...


@pytest.fixture
def agent_factory() -> Iterator[AgentFactory]:
    with ExitStack() as stack:

        def start(entries: str | None = None, **options: Any) -> RunningAgent:
            agent = RunningAgent(entry_for_me() if entries is None else entries, **options)
            stack.callback(agent.close)
            return agent

        yield start


def pytest_configure() -> None:
    """Raise the descriptor limit: some tests hold both ends of a thousand connections."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long parameters by their argument: keys are random, and workers need equal test IDs."""
    return argname if isinstance(val, str | bytes | int) and len(str(val)) > LONGEST_ID else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add `no_leaked_tasks` to each coroutine test; it runs after the test's own fixtures close."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            position = item.fixturenames.index("no_leaks") + 1
            item.fixturenames.insert(position, "no_leaked_tasks")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor or a child process behind."""
    descriptors, children = _descriptors(), _children()
    yield
    leaked = _descriptors() - descriptors
    if leaked:
        gc.collect()  # unreachable cycles may hold open files
        leaked = _descriptors() - descriptors
    assert not leaked, f"leaked descriptors: {sorted(leaked)}"
    assert not (left := _children() - children), f"left child processes: {sorted(left)}"


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which a key, a token or an environment variable's value was logged."""

    def generate(key_type: keys.KeyType) -> keys.PrivateKey:
        key = make(key_type)
        secrecy.add_key(key)
        return key

    make = keys.generate
    monkeypatch.setattr(keys, "generate", generate)
    secrecy.reset()
    yield
    assert not (secrets := secrecy.found()), f"logged: {secrets}"


@pytest.fixture
def me() -> Iterator[Caller]:
    """This process as a Caller, identified by a socket pair."""
    near, far = socket.socketpair()
    with near, far:
        caller = identify(near)
    yield caller
    caller.close()


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Fail a coroutine test that leaves a task running."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # cancelled tasks end in this turn
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"left tasks: {left}"


def _descriptors() -> set[tuple[int, str]]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # the directory that was just listed
        if not ("grpc" in sys.modules and target in _KEPT_BY_GRPC):
            found.add((int(link.name), target))
    return found


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}  # noqa: TID251 - no evidence here
