"""The podman-rootless attestor: the engine of a user, whose claims count for that user only."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
from pydantic import ValidationError

from attestors.api import AttestorContext, AttestorError, Findings, Selector
from attestors.podman_rootless import RootlessOptions, RootlessPodmanAttestor
from tests.support.engine_server import EngineServer, as_nobody, containers
from tests.support.findings import closing
from tests.support.workload import Workload

ID = "a" * 64
UID = os.getuid()
BELOW = f"/user.slice/user-{UID}.slice/user@{UID}.service/user.slice"
CGROUP = f"0::{BELOW}/libpod-{ID}.scope\n".encode()


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    """An engine of the user that runs the tests."""
    async with EngineServer(f"{UID}.sock") as server:
        yield server


def attestor(
    template: str, cgroup: bytes = CGROUP
) -> AbstractAsyncContextManager[RootlessPodmanAttestor]:
    """The attestor; the first process of every container is in this cgroup."""
    options = RootlessOptions(socket=template)
    of_engine = partial(containers, cgroup=cgroup, follow=False)
    return closing(RootlessPodmanAttestor(options, AttestorContext(), of_engine))


def template(engine: EngineServer) -> str:
    return str(engine.directory / "{uid}.sock")


async def test_selector_contains_the_id_of_the_user(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(template(engine)) as made:
        findings = await made.attest(Workload(CGROUP))
    assert {str(each) for each in findings.selectors} == {
        f"podman-rootless:{UID}:{value}"
        for value in (
            "label:tier:front",
            "env:A=1",
            "image_id:nginx:1",
            f"image_config_digest:sha256:{'1' * 64}",
            "container_name:web",
        )
    }
    assert not engine.watched.is_set(), "the user could send events without end"


@pytest.mark.parametrize(
    "cgroup",
    [
        b"0::/\n",
        f"0::/machine.slice/libpod-{ID}.scope\n".encode(),
        f"0::{BELOW}/docker-{ID}.scope\n".encode(),
    ],
)
async def test_engine_is_not_asked_about_a_process_in_no_container_of_a_user(
    engine: EngineServer, cgroup: bytes
) -> None:
    engine.add(ID)
    async with attestor(template(engine)) as made:
        assert await made.attest(Workload(cgroup)) == Findings()
    assert engine.inspected == []


async def test_container_that_the_engine_does_not_know_is_noted(engine: EngineServer) -> None:
    async with attestor(template(engine)) as made:
        findings = await made.attest(Workload(CGROUP))
    assert not findings.selectors
    assert f"user {UID}'s Podman does not know this container" in findings.notes[0]


async def test_socket_that_does_not_belong_to_the_user_is_refused(engine: EngineServer) -> None:
    engine.add(ID)
    (engine.directory / f"link-{UID}.sock").symlink_to(engine.path)
    async with attestor(str(engine.directory / "link-{uid}.sock")) as made:
        with pytest.raises(AttestorError, match=f"is not a socket of user {UID}"):
            await made.attest(Workload(CGROUP))
    async with attestor("/nowhere/{uid}") as made:
        with pytest.raises(AttestorError, match=r"that user must enable podman\.socket"):
            await made.attest(Workload(CGROUP))
    assert engine.inspected == []


async def test_container_of_the_cgroupfs_driver_is_found_by_its_id_alone(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    cgroup = f"0::{BELOW}/{ID}\n".encode()
    async with attestor(template(engine), cgroup) as made:
        findings = await made.attest(Workload(cgroup))
    assert Selector("podman-rootless", f"{UID}:container_name:web") in findings.selectors


async def test_directory_that_the_agent_may_not_search_comes_with_advice(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    engine.directory.chmod(0)
    try:
        async with attestor(template(engine)) as made:
            with as_nobody(), pytest.raises(AttestorError, match="run the agent as root"):
                await made.attest(Workload(CGROUP))
    finally:
        engine.directory.chmod(0o700)


@pytest.mark.parametrize("path", ["/run/podman.sock", "/run/{uid}/{uid}"])
def test_socket_option_contains_the_user_once(path: str) -> None:
    with pytest.raises(ValidationError, match=r"write \{uid\} once"):
        RootlessOptions(socket=path)
