"""Edits of the files of a running agent, seen by its open streams."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.client.admin import AdminClient
from agent.client.workload import WorkloadClient
from agent.errors import NoIdentityError
from tests.conftest import AgentFactory
from tests.support.agent import SAFETY_SECONDS, RunningAgent
from tests.support.cli import vouchd
from tests.support.streams import Stream

UID, GID = os.getuid(), os.getgid()


def entries(*paths: str, **fields: str) -> str:
    rest = "".join(f", {name}: {value}" for name, value in fields.items())
    lines = [f"  - {{spiffe_id: {path}, selectors: ['unix:uid:{UID}']{rest}}}" for path in paths]
    return "\n".join(["entries:", *lines, ""])


def replace(file: Path, text: str) -> None:
    """Replace a file as editors do: write another one, and rename it over the first."""
    beside = file.with_name(f".{file.name}.swp")
    beside.write_text(text)
    beside.rename(file)


def status(agent: RunningAgent) -> dict[str, object]:
    with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
        found: dict[str, object] = client.status()["entries"]
        return found


def test_an_edit_reaches_the_streams_whose_identities_it_changes(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(entries("/one"))
    with Stream(agent.socket) as stream:
        assert stream.next_ids() == ["/one"]
        replace(agent.entries, entries("/one", "/two"))
        assert stream.next_ids() == ["/one", "/two"]
        agent.entries.write_text(entries("/two"))
        assert stream.next_ids() == ["/two"]


def test_a_stream_whose_identities_stay_gets_no_message(agent_factory: AgentFactory) -> None:
    agent = agent_factory(entries("/one"))
    with Stream(agent.socket) as stream:
        stream.next()
        for number in range(3):
            others = f"  - {{spiffe_id: /x{number}, selectors: ['unix:uid:4294967294']}}\n"
            replace(agent.entries, "# moved by a line\n" + entries("/one") + others)
            seen = agent.log.count("\n")
            line = agent.wait_for_log("entries reloaded", since=seen - 1)
            assert "streams=0" in line
        assert stream.is_silent()
        replace(agent.entries, entries("/two"))
        assert stream.next_ids() == ["/two"]


def test_removing_the_last_entry_of_a_stream_ends_it(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(entries("/one"))
    with Stream(agent.socket) as stream:
        stream.next()
        agent.entries.unlink()
        agent.wait_for_log("cannot be read")
        assert stream.is_silent(), "a file that is missing is a mistake, and changes nothing"
        agent.entries.write_text("entries: []\n")
        with pytest.raises(NoIdentityError):
            stream.next()


def test_a_mistake_changes_nothing_and_is_logged_with_file_line_and_column(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(entries("/one"))
    with Stream(agent.socket) as stream:
        stream.next()
        replace(agent.entries, entries("/two") + "  - {spiffe_id: /three, selector: x}\n")
        line = agent.wait_for_log("did you mean 'selectors'?")
        assert "entries not reloaded" in line
        assert "the last good entries stay in force" in line
        assert "entries.yaml:3:25: unknown key 'selector'" in line
        found = status(agent)
        assert found["loaded"] == 1
        assert "entries.yaml:3:25" in str(found["problems"])
        with AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
            metrics = client.metrics()
        assert "vouchd_entries_valid 0.0" in metrics
        assert 'vouchd_entries_reloads_total{result="refused"} 1.0' in metrics
        assert stream.is_silent()
        replace(agent.entries, entries("/two"))
        assert stream.next_ids() == ["/two"]
        assert status(agent)["problems"] == []


def test_a_swapped_configmap_is_one_change(agent_factory: AgentFactory) -> None:
    agent = agent_factory(entries("/one"), config="")
    folder = agent.directory / "mounted"
    for version in ("1", "2"):
        (folder / f"..{version}").mkdir(parents=True)
        (folder / f"..{version}" / "a.yaml").write_text(entries(f"/a{version}"))
        (folder / f"..{version}" / "b.yaml").write_text(entries(f"/b{version}"))
    (folder / "..data").symlink_to("..1")
    for name in ("a.yaml", "b.yaml"):
        (folder / name).symlink_to(f"..data/{name}")
    agent.config.write_text(agent.config.read_text().replace("entries.yaml", "mounted"))
    with Stream(agent.socket) as stream:
        assert stream.next_ids() == ["/one"]
        agent.hang_up()
        assert stream.next_ids() == ["/a1", "/b1"]
        (folder / "..data_tmp").symlink_to("..2")
        (folder / "..data_tmp").rename(folder / "..data")
        assert stream.next_ids() == ["/a2", "/b2"]


def test_a_half_written_file_is_not_read(agent_factory: AgentFactory) -> None:
    agent = agent_factory(entries("/one"))
    with Stream(agent.socket) as stream:
        stream.next()
        with agent.entries.open("w") as file:
            file.write(entries("/two"))
            file.flush()
            agent.wait_for_log("entries not reloaded yet")
            assert stream.is_silent()
            file.write("  - {spiffe_id: /three, selectors: ['unix:gid:" + f"{GID}']}}\n")
        assert stream.next_ids() == ["/two", "/three"]


def test_a_stream_loses_the_identity_of_an_entry_that_ends(agent_factory: AgentFactory) -> None:
    agent = agent_factory(entries("/lasting"))
    with Stream(agent.socket) as stream:
        stream.next()
        soon = entries("/lasting") + entries("/ending", expires_at=_in(4)).removeprefix(
            "entries:\n"
        )
        replace(agent.entries, soon)
        assert stream.next_ids() == ["/lasting", "/ending"]
        assert stream.next_ids() == ["/lasting"]


def _in(seconds: int) -> str:
    return f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"  # noqa: TID251 - real


def test_sighup_reloads_the_settings_that_can_change_and_names_the_others(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(entries("/one"))
    before = agent.config.read_text()
    agent.config.write_text(
        before.replace("example.org", "other.test") + "log: {level: debug}\n"
        "authority: {x509_svid_ttl: 30m, jwt_svid_ttl: 2m, x509_ca_ttl: 12h}\n"
    )
    agent.hang_up()
    line = agent.wait_for_log("setting needs a restart")
    assert "trust_domain" in line
    line = agent.wait_for_log("settings reloaded")
    assert '"authority", "log"' in line
    with Stream(agent.socket) as stream:
        [svid] = stream.next().svids
    assert svid.spiffe_id == "spiffe://example.org/one"
    leaf = x509.load_der_x509_certificate(svid.chain_der)
    lives = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert timedelta(minutes=30) <= lives < timedelta(minutes=31)
    with WorkloadClient(agent.socket, SAFETY_SECONDS) as workload:
        [token] = workload.fetch_jwt_svids(("a",), "")
    claims = jwt.decode(token.token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 120
    agent.wait_for_log("caller attested")
    with AdminClient(agent.admin_socket, SAFETY_SECONDS) as admin:
        made = admin.prepare_authority("jwt")
    assert made["expires_at"] - made["since"] < timedelta(hours=12, seconds=1)
    agent.config.write_text(before + "reattest_intervall: 5s\n")
    agent.hang_up()
    assert "agent.yaml:7:1: unknown key" in agent.wait_for_log("settings not reloaded")


def test_share_process_gives_each_process_its_own_key(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(entries("/shared") + entries("/own", share="process")[9:])
    with Stream(agent.socket) as mine, Stream(agent.socket) as again:
        first, second = mine.next(), again.next()
        assert [svid.key_der for svid in first.svids] == [svid.key_der for svid in second.svids]
        other = agent_fetch(agent)
        assert other[0] == first.svids[0].chain_der
        assert other[1] != first.svids[1].chain_der


def agent_fetch(agent: RunningAgent) -> list[bytes]:
    """The certificates that another process of the same user gets."""
    answer = vouchd("fetch", "x509", "--socket", agent.socket, "--output", "json").json
    return [
        x509.load_pem_x509_certificate(svid["chain_pem"].encode()).public_bytes(Encoding.DER)
        for svid in answer["svids"]
    ]


def test_large_files_are_compared_with_the_entries_in_force(agent_factory: AgentFactory) -> None:
    """A file may have 64 MiB: the agent reads a request faster than its bounds end it."""
    agent = agent_factory(entries("/one"))
    content = entries("/two").encode() + (b"#" + b"x" * 998 + b"\n") * (60 << 10)
    with Stream(agent.socket) as stream, AdminClient(agent.admin_socket, SAFETY_SECONDS) as client:
        assert stream.next_ids() == ["/one"]
        assert client.diff_entries([("entries.yaml", content)])["changed"]
        assert client.status()["entries"]
