"""Naming a caller on real sockets; older kernels by the errors of their socket option."""

from __future__ import annotations

import errno
import os
from contextlib import closing

import pytest

from agent.errors import PeerError, PeerGoneError
from agent.kernel.caller import Proof, identify
from tests.support.peers import altered, pair


def test_a_caller_has_the_credentials_of_the_connecting_process() -> None:
    with pair() as sock, closing(identify(sock)) as caller:
        assert caller.credentials.pid == os.getpid()
        assert caller.credentials.uid == os.geteuid()
        assert caller.credentials.gid == os.getegid()
        assert set(caller.credentials.groups) == set(os.getgroups())
        assert caller.proof is Proof.PEERPIDFD


def test_a_kernel_without_the_socket_option_gives_the_weaker_proof() -> None:
    missing = OSError(errno.ENOPROTOOPT, "no")
    with altered(pidfd=missing) as sock, closing(identify(sock)) as caller:
        assert caller.proof is Proof.PIDFD_OPEN
        assert caller.process.is_alive()


def test_the_weaker_proof_is_refused_where_the_stronger_is_required() -> None:
    missing = OSError(errno.ENOPROTOOPT, "no")
    with altered(pidfd=missing) as sock, pytest.raises(PeerError, match="asks for peerpidfd"):
        identify(sock, Proof.PEERPIDFD)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENODATA, errno.ESRCH])
def test_any_other_error_of_the_option_means_that_the_peer_is_gone(code: int) -> None:
    with altered(pidfd=OSError(code, "no")) as sock, pytest.raises(PeerGoneError):
        identify(sock)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_of_the_agent_is_not_taken_for_a_dead_peer(code: int) -> None:
    with altered(pidfd=OSError(code, "short")) as sock, pytest.raises(OSError, match="short"):
        identify(sock)
