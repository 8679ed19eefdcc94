"""The metrics in a real Prometheus: scraped, linted, and used by every query."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.pb import workloadapi_pb2 as pb
from tests.conftest import AgentFactory
from tests.support import pids, raw, scrape
from tests.support.agent import SAFETY_SECONDS, RunningAgent

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARD = ROOT / "deploy/grafana/vouchd.json"
FIRST_UID, USERS = 20_000, 50
AUDIENCE = pb.JWTSVIDRequest(audience=["a"])
# Calls in some seconds.
ENOUGH = 20_000


def promtool(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, arguments)], input=given, capture_output=True, text=True, check=False
    )


def test_the_alerts_are_valid_and_fire_for_a_failing_agent() -> None:
    checked = promtool("check", "rules", ALERTS)
    assert checked.returncode == 0, checked.stderr
    tested = promtool("test", "rules", ROOT / "tests/vectors/alerts_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_metric_names_and_units_follow_the_convention(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config="telemetry: {listen: t.sock}")
    status, text = scrape.get(agent.directory / "t.sock", "/metrics")
    assert status == 200
    linted = promtool("check", "metrics", given=text)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


def test_calls_of_many_users_create_no_series(agent_factory: AgentFactory) -> None:
    uids = range(FIRST_UID, FIRST_UID + USERS)
    entries = "".join(
        f"  - {{spiffe_id: /user/{uid}, selectors: ['unix:uid:{uid}']}}\n" for uid in uids[::2]
    )
    agent = agent_factory(f"entries:\n{entries}", config="telemetry: {listen: t.sock}")
    where = agent.directory / "t.sock"
    before = scrape.scrape(where)
    statuses = [_fetch_as(agent, uid) for uid in uids]
    after = scrape.scrape(where)
    assert statuses == [0, raw.PERMISSION_DENIED] * (USERS // 2)
    assert after['vouchd_refusals_total{reason="no_entry"}'] == USERS // 2
    assert after['vouchd_calls_total{code="OK",method="FetchJWTSVID"}'] == USERS // 2
    assert after.keys() == before.keys()


def test_other_users_cannot_connect_to_the_unix_socket(agent_factory: AgentFactory) -> None:
    group = 7002
    agent = agent_factory(config=f"telemetry: {{listen: t.sock, group: {group}}}")

    def is_answered() -> None:
        pids.become(1001, groups=(group,))
        assert scrape.get(agent.directory / "t.sock", "/live") == (200, "live\n")

    def is_kept_out() -> None:
        pids.become(1001)
        with pytest.raises(PermissionError):
            scrape.connect(agent.directory / "t.sock")

    assert pids.reap(pids.fork(is_answered)) == 0
    assert pids.reap(pids.fork(is_kept_out)) == 0


def test_prometheus_scrapes_the_agent_and_evaluates_every_query(
    agent_factory: AgentFactory, tmp_path: Path
) -> None:
    port = scrape.free_port()
    agent = agent_factory(config=f"telemetry: {{listen: '127.0.0.1:{port}'}}")
    client = raw.connect(str(agent.socket))
    with closing(client.sock), prometheus(tmp_path, port) as api:
        client.fetch_x509()
        # A rate needs a change between two scrapes.
        for _ in range(ENOUGH):
            call = client.call("FetchJWTSVID", AUDIENCE)
            assert client.status(call).status == 0
            if query(api, 'rate(vouchd_stage_duration_seconds_count{stage="match"}[1m]) > 0'):
                break
        [up] = query(api, 'up{job="vouchd"}')
        assert up["value"][1] == "1"
        [streams] = query(api, 'vouchd_streams{method="FetchX509SVID"}')
        assert streams["value"][1] == "1"
        answers = {each: query(api, each) for each in expressions()}
    [median] = [each for each in answers if each.startswith("histogram_quantile(0.5,")]
    stages = {each["metric"]["stage"] for each in answers[median]}
    assert {"accept", "evidence", "match", "send", "attestor:unix"} <= stages


def expressions() -> list[str]:
    """All expressions of the dashboard and the alerts, with Grafana's variables replaced."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    filled = [each.replace("$__rate_interval", "1m").replace("$instance", ".*") for each in asked]
    return [*filled, *(rule["expr"] for rule in group["rules"])]


@contextmanager
def prometheus(directory: Path, target: int) -> Iterator[tuple[str, int]]:
    """A Prometheus that scrapes a port every second; its own address."""
    port = scrape.free_port()
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": "vouchd", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            assert any("Server is ready" in line for line in lines), "prometheus ended"
            yield "127.0.0.1", port
        finally:
            process.terminate()
            process.communicate(timeout=SAFETY_SECONDS)


def query(api: tuple[str, int], expression: str) -> list[dict[str, Any]]:
    """The current result of an expression."""
    asked = urllib.parse.urlencode({"query": expression})
    request = f"GET /api/v1/query?{asked} HTTP/1.0\r\nHost: x\r\n\r\n"
    _, body = scrape.ask(api, request.encode())
    answer = json.loads(body)
    assert answer["status"] == "success", f"{expression}: {answer}"
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def _fetch_as(agent: RunningAgent, uid: int) -> int:
    """The exit code of a process of that user that makes a call."""

    def child() -> None:
        pids.become(uid)
        client = raw.connect(str(agent.socket))
        call = client.call("FetchJWTSVID", AUDIENCE)
        os._exit(client.status(call).status or 0)

    return pids.reap(pids.fork(child))
