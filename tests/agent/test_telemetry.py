"""The metrics of a running agent: they count, and the number of series never grows."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from cryptography import x509

from agent.pb import workloadapi_pb2 as pb
from tests.conftest import AgentFactory
from tests.support import raw, scrape
from tests.support.agent import RunningAgent
from tests.support.cli import vouchd
from tests.support.streams import Stream

LISTEN = "telemetry: {listen: t.sock}"
AUDIENCE = pb.JWTSVIDRequest(audience=["a"])


@contextmanager
def connected(agent: RunningAgent) -> Iterator[raw.RawClient]:
    client = raw.connect(str(agent.socket))
    with closing(client.sock):
        yield client


def test_calls_are_counted_with_their_stages(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=LISTEN)
    where = agent.directory / "t.sock"
    before = scrape.scrape(where)
    with connected(agent) as client:
        stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
        client.message(stream)
        assert client.status(client.call("FetchJWTSVID", AUDIENCE)).status == 0
        during = scrape.changes(before, scrape.scrape(where))
        assert during["vouchd_connections{}"] == 1
        assert during['vouchd_streams{method="FetchX509SVID"}'] == 1
        assert during['vouchd_svids{kind="x509"}'] == 1
        assert during['vouchd_svids{kind="jwt"}'] == 1
        client.http.reset_stream(stream)
        client.flush()
        # The next call on this connection is answered after it.
        assert client.status(client.call("FetchJWTSVID", AUDIENCE)).status == 0
        found = scrape.changes(before, scrape.scrape(where))
    assert found['vouchd_calls_total{code="CANCELLED",method="FetchX509SVID"}'] == 1
    assert found['vouchd_calls_total{code="OK",method="FetchJWTSVID"}'] == 2
    assert not [name for name in found if "refusals" in name]
    counts = {
        stage: found.get(f'vouchd_stage_duration_seconds_count{{stage="{stage}"}}', 0)
        for stage in ("accept", "evidence", "match", "mint:x509", "mint:jwt", "send")
    }
    assert counts == {
        "accept": 1,
        "evidence": 3,
        "match": 3,
        "mint:x509": 1,
        "mint:jwt": 1,
        "send": 1,
    }
    assert found['vouchd_stage_duration_seconds_count{stage="attestor:unix"}'] >= 1


def test_the_challenge_of_a_program_is_timed(agent_factory: AgentFactory) -> None:
    mine = f"unix:path:{os.path.realpath('/proc/self/exe')}"
    agent = agent_factory(
        f"entries:\n  - {{spiffe_id: /me, selectors: ['{mine}']}}\n", config=LISTEN
    )
    with Stream(agent.socket) as stream:
        stream.next()
        found = scrape.scrape(agent.directory / "t.sock")
    assert found['vouchd_stage_duration_seconds_count{stage="challenge"}'] == 1


def test_refusals_are_counted_by_reason(agent_factory: AgentFactory) -> None:
    agent = agent_factory("entries: []\n", config=LISTEN)
    where = agent.directory / "t.sock"
    before = scrape.scrape(where)
    with connected(agent) as client:
        refused = [
            client.status(client.call("FetchX509SVID", pb.X509SVIDRequest())),
            client.status(client.call("FetchX509SVID", pb.X509SVIDRequest(), headers=[])),
            client.status(client.call("FetchJWTSVID", pb.JWTSVIDRequest())),
            client.status(client.call("FetchJWTSVID", b"\xff")),
            client.status(client.call("FetchWITSVID", pb.WITSVIDRequest())),
            client.status(client.call("FetchNothing", b"")),
        ]
    found = scrape.changes(before, scrape.scrape(where))
    assert [call.status for call in refused] == [7, 3, 3, 3, 12, 12]
    assert found['vouchd_refusals_total{reason="no_entry"}'] == 1
    assert found['vouchd_refusals_total{reason="request"}'] == 3
    assert found['vouchd_refusals_total{reason="unsupported"}'] == 2
    assert found['vouchd_calls_total{code="PERMISSION_DENIED",method="FetchX509SVID"}'] == 1
    assert found['vouchd_calls_total{code="INVALID_ARGUMENT",method="FetchJWTSVID"}'] == 2
    assert found['vouchd_calls_total{code="UNIMPLEMENTED",method="FetchWITSVID"}'] == 1
    assert found['vouchd_calls_total{code="UNIMPLEMENTED",method="other"}'] == 1


def test_a_foreign_sender_is_counted(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=LISTEN)
    where = agent.directory / "t.sock"
    with connected(agent) as client:
        client.fetch_x509()
        if (child := os.fork()) == 0:
            client.call("FetchX509SVID", pb.X509SVIDRequest())
            os._exit(0)
        os.waitpid(child, 0)
        agent.wait_for_log("connection refused")
        found = scrape.scrape(where)
    assert found['vouchd_refusals_total{reason="foreign_sender"}'] == 1


def test_reloads_are_counted_and_errors_change_a_gauge(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(config=LISTEN)
    where = agent.directory / "t.sock"
    good = agent.config.read_text()
    before = scrape.scrape(where)
    assert before["vouchd_settings_valid{}"] == before["vouchd_entries_valid{}"] == 1
    agent.hang_up()
    agent.wait_for_log("entries reloaded")
    found = scrape.changes(before, scrape.scrape(where))
    assert found['vouchd_settings_reloads_total{result="loaded"}'] == 1
    assert found['vouchd_entries_reloads_total{result="loaded"}'] == 1
    agent.config.write_text(f"{good}nonsense: 1\n")
    agent.hang_up()
    agent.wait_for_log("settings not reloaded")
    agent.wait_for_log("entries reloaded", since=agent.log.count("\n") - 1)
    broken = scrape.scrape(where)
    assert broken["vouchd_settings_valid{}"] == 0
    assert broken['vouchd_settings_reloads_total{result="refused"}'] == 1
    agent.config.write_text(good)
    agent.hang_up()
    agent.wait_for_log("settings reloaded", since=agent.log.count("\n"))
    assert scrape.scrape(where)["vouchd_settings_valid{}"] == 1


def test_expiry_metrics_are_in_the_future(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=LISTEN)
    with Stream(agent.socket) as stream:
        [svid] = stream.next().svids
        found = scrape.scrape(agent.directory / "t.sock")
    leaf = x509.load_der_x509_certificate(svid.chain_der)
    assert found["vouchd_svid_expiry_timestamp_seconds{}"] == leaf.not_valid_after_utc.timestamp()
    now = time.clock_gettime(time.CLOCK_REALTIME)
    for kind in ("x509", "jwt"):
        expiry = found[f'vouchd_authority_expiry_timestamp_seconds{{kind="{kind}"}}']
        lifetime = found[f'vouchd_authority_lifetime_seconds{{kind="{kind}"}}']
        assert 0 < expiry - now < lifetime < 86400 + 60


def test_text_that_callers_choose_creates_no_series(agent_factory: AgentFactory) -> None:
    names = "\n".join(
        f"  - {{spiffe_id: /me/{number}, selectors: ['unix:uid:{os.getuid()}']}}"
        for number in range(100)
    )
    agent = agent_factory(config=LISTEN)
    where = agent.directory / "t.sock"
    before = scrape.scrape(where)
    agent.entries.write_text(f"entries:\n{names}\n")
    agent.wait_for_log("entries reloaded")
    for number in range(30):
        with connected(agent) as client:
            for method, request in (
                ("FetchJWTSVID", pb.JWTSVIDRequest(audience=[f"audience-{number}"])),
                (
                    "FetchJWTSVID",
                    pb.JWTSVIDRequest(audience=["a"], spiffe_id=f"spiffe://x/{number}"),
                ),
                ("ValidateJWTSVID", pb.ValidateJWTSVIDRequest(audience="a", svid=f"{number}")),
                (f"Method{number}", b""),
                (f"/Service{number}/Method", b"\xff" * number),
            ):
                client.status(client.call(method, request))
    after = scrape.scrape(where)
    assert after["vouchd_entries{}"] == 100
    assert after['vouchd_refusals_total{reason="request"}'] >= 30
    assert after.keys() == before.keys()
    words = " ".join(after)
    assert str(os.getpid()) not in words
    assert "spiffe://" not in words
    assert f'"{agent.pid}"' not in words


def test_status_metrics_prints_the_same_metrics(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=LISTEN)
    shown = vouchd("status", "--metrics", "--admin-socket", agent.admin_socket)
    scraped = scrape.scrape(agent.directory / "t.sock")
    assert scrape.series(shown.stdout).keys() == scraped.keys()


def test_live_and_ready_answer(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=LISTEN)
    where = agent.directory / "t.sock"
    assert scrape.get(where, "/live") == (200, "live\n")
    assert scrape.get(where, "/ready") == (200, "ready\n")
    assert scrape.scrape(where)["vouchd_ready{}"] == 1
    agent.stop()
    assert not where.exists()


def test_no_http_server_runs_unless_it_is_configured(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    assert not list(agent.directory.glob("t.sock*"))
    shown = vouchd("status", "--metrics", "--admin-socket", agent.admin_socket)
    assert scrape.series(shown.stdout)["vouchd_ready{}"] == 1


def test_the_unix_socket_is_open_to_the_configured_group(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=f"telemetry: {{listen: t.sock, group: {os.getgid()}}}")
    assert stat.S_IMODE((agent.directory / "t.sock").stat().st_mode) == 0o660


def test_a_loopback_port_in_use_is_an_error(agent_factory: AgentFactory) -> None:
    port = scrape.free_port()
    config = f"telemetry: {{listen: '127.0.0.1:{port}'}}"
    agent = agent_factory(config=config)
    assert scrape.get(("127.0.0.1", port), "/ready") == (200, "ready\n")
    other = agent.directory / "other.yaml"
    other.write_text(agent.config.read_text().replace("data_dir: data", "data_dir: other"))
    other.write_text(other.read_text().replace("agent.sock", "o.sock").replace("admin.", "oadmin."))
    outcome = vouchd("run", "-c", other)
    assert outcome.code != 0
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in outcome.stderr
    assert "free port, or the path of a Unix socket" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_flood_of_invalid_requests_harms_nothing(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(config=LISTEN)
    where = agent.directory / "t.sock"
    held = [scrape.connect(where) for _ in range(100)]
    try:
        for _ in range(50):
            scrape.ask(where, os.urandom(2000))
        with Stream(agent.socket) as stream:
            assert stream.next_ids() == ["/test/me"]
    finally:
        for sock in held:
            sock.close()
    assert "Traceback" not in agent.log
