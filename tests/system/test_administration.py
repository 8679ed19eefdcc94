"""Access to the admin API: the mode of the socket, and the credentials of the caller."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable

import pytest

from agent.pb import admin_pb2 as pb
from tests.conftest import AgentFactory
from tests.support import pids, raw
from tests.support.agent import RunningAgent
from tests.support.cli import vouchd

pytestmark = pytest.mark.system

OPERATORS = 7001
STATUS = "/vouchd.admin.v1.Admin/GetStatus"
OK, PERMISSION_DENIED = 0, 7
CANNOT_CONNECT = -1


def get_status_as(agent: RunningAgent, become: Callable[[], None]) -> int:
    """The status code of GetStatus for a process that ran `become`."""
    read, write = os.pipe()

    def child() -> None:
        become()
        try:
            client = raw.connect(str(agent.admin_socket))
        except PermissionError:
            status = CANNOT_CONNECT
        else:
            status = client.status(client.call(STATUS, pb.GetStatusRequest())).status or 0
        os.write(write, str(status).encode())

    assert pids.reap(pids.fork(child)) == 0
    os.close(write)
    with os.fdopen(read) as pipe:
        return int(pipe.read())


def test_root_may_administer_and_other_users_cannot_connect(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    assert get_status_as(agent, lambda: None) == OK
    assert get_status_as(agent, lambda: pids.become(1001)) == CANNOT_CONNECT


def test_members_of_admin_socket_group_may_administer(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=f"admin_socket_group: {OPERATORS}")
    status = agent.admin_socket.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, OPERATORS)
    assert get_status_as(agent, lambda: pids.become(1001, groups=(OPERATORS,))) == OK
    assert get_status_as(agent, lambda: pids.become(1001, gid=OPERATORS)) == OK
    assert get_status_as(agent, lambda: pids.become(1001)) == CANNOT_CONNECT


def test_a_socket_mode_opened_by_mistake_admits_no_other_user(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    agent.admin_socket.chmod(0o666)
    assert get_status_as(agent, lambda: pids.become(1001)) == PERMISSION_DENIED
    assert "user 1001 may not administer" in agent.wait_for_log("admin call refused")


def test_the_public_socket_does_not_serve_the_admin_api(agent_factory: AgentFactory) -> None:
    client = raw.connect(str(agent_factory().socket))
    try:
        assert client.status(client.call(STATUS, pb.GetStatusRequest())).status == 12
    finally:
        client.sock.close()


def test_explain_shows_what_an_entry_lacks_for_a_process_of_another_user(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(
        "entries:\n  - {id: web, spiffe_id: /web, selectors: ['unix:uid:1002', 'unix:gid:1001']}\n"
        "  - {id: own, spiffe_id: '/user/{unix:uid}', selectors: ['unix:gid:1001']}\n"
    )
    read, write = os.pipe()

    def wait() -> None:
        pids.become(1001)
        os.write(write, b"!")
        signal.pause()

    with pids.sleeping_child(wait) as pid:
        assert os.read(read, 1)
        answer = vouchd(
            "explain", pid, "--admin-socket", agent.admin_socket, "--output", "json"
        ).json
    for descriptor in (read, write):
        os.close(descriptor)
    assert answer["process"]["uid"] == 1001
    [matched] = answer["verdict"]["matched"]
    assert matched["spiffe_id"] == "spiffe://example.org/user/1001"
    [missed] = answer["verdict"]["missed"]
    assert missed["lacking"] == [{"wanted": "unix:uid:1002", "found": ["unix:uid:1001"]}]


def test_share_process_gives_each_process_its_own_key(agent_factory: AgentFactory) -> None:
    agent = agent_factory(
        "entries:\n  - {spiffe_id: /web, selectors: ['unix:uid:1001'], share: process}\n"
    )
    assert len({_key_of_a_process(agent) for _ in range(3)}) == 3


def _key_of_a_process(agent: RunningAgent) -> bytes:
    read, write = os.pipe()

    def child() -> None:
        pids.become(1001)
        clients = [raw.connect(str(agent.socket)) for _ in range(2)]
        keys = {client.fetch_x509().svids[0].x509_svid_key for client in clients}
        assert len(keys) == 1, "both connections are of one process"
        os.write(write, keys.pop())

    assert pids.reap(pids.fork(child)) == 0
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()
