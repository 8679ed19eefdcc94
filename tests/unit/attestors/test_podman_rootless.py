"""The podman-rootless attestor: a user's own engine, whose word is that user's alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from pydantic import ValidationError

from attestors.api import AttestorContext, AttestorError, Findings, Selector
from attestors.podman_rootless import RootlessOptions, RootlessPodmanAttestor
from tests.support.engine_server import EngineServer, as_nobody, kernel_says
from tests.support.findings import closing
from tests.support.workload import Workload

ID = "a" * 64
UID = os.getuid()
BELOW = f"/user.slice/user-{UID}.slice/user@{UID}.service/user.slice"
CGROUP = f"0::{BELOW}/libpod-{ID}.scope\n".encode()


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    """An engine of the user who runs the tests; its containers' first processes are in CGROUP."""
    with kernel_says(CGROUP):
        async with EngineServer(f"{UID}.sock") as server:
            yield server


def attestor(template: str) -> AbstractAsyncContextManager[RootlessPodmanAttestor]:
    return closing(RootlessPodmanAttestor(RootlessOptions(socket=template), AttestorContext()))


def template(engine: EngineServer) -> str:
    return str(engine.directory / "{uid}.sock")


async def test_every_selector_names_the_user_whose_word_it_is(engine: EngineServer) -> None:
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
    assert not engine.watched.is_set(), "that user could send events without end"


@pytest.mark.parametrize(
    "cgroup",
    [
        b"0::/\n",
        f"0::/machine.slice/libpod-{ID}.scope\n".encode(),
        f"0::{BELOW}/docker-{ID}.scope\n".encode(),
    ],
)
async def test_others_are_not_asked_for(engine: EngineServer, cgroup: bytes) -> None:
    engine.add(ID)
    async with attestor(template(engine)) as made:
        assert await made.attest(Workload(cgroup)) == Findings()
    assert engine.inspected == []


async def test_a_container_that_the_user_does_not_have(engine: EngineServer) -> None:
    async with attestor(template(engine)) as made:
        findings = await made.attest(Workload(CGROUP))
    assert not findings.selectors
    assert f"user {UID}'s Podman does not know this container" in findings.notes[0]


async def test_a_socket_that_is_not_that_users(engine: EngineServer) -> None:
    engine.add(ID)
    (engine.directory / f"link-{UID}.sock").symlink_to(engine.path)
    async with attestor(str(engine.directory / "link-{uid}.sock")) as made:
        with pytest.raises(AttestorError, match=f"is not a socket of user {UID}'s"):
            await made.attest(Workload(CGROUP))
    async with attestor("/nowhere/{uid}") as made:
        with pytest.raises(AttestorError, match=r"let that user enable podman\.socket"):
            await made.attest(Workload(CGROUP))
    assert engine.inspected == []


async def test_the_cgroupfs_driver_names_a_container_by_its_id_alone(engine: EngineServer) -> None:
    engine.add(ID)
    cgroup = f"0::{BELOW}/{ID}\n".encode()
    with kernel_says(cgroup):
        async with attestor(template(engine)) as made:
            findings = await made.attest(Workload(cgroup))
    assert Selector("podman-rootless", f"{UID}:container_name:web") in findings.selectors


async def test_a_users_directory_that_the_agent_may_not_look_into(engine: EngineServer) -> None:
    engine.add(ID)
    engine.directory.chmod(0)
    try:
        async with attestor(template(engine)) as made:
            with as_nobody(), pytest.raises(AttestorError, match="the agent has to be root"):
                await made.attest(Workload(CGROUP))
    finally:
        engine.directory.chmod(0o700)


@pytest.mark.parametrize("path", ["/run/podman.sock", "/run/{uid}/{uid}"])
def test_the_path_names_the_user_once(path: str) -> None:
    with pytest.raises(ValidationError, match=r"write \{uid\} once"):
        RootlessOptions(socket=path)
