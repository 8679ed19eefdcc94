"""grpcurl reads the API by reflection and calls it over the agent's socket."""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tests.conftest import AgentFactory
from tests.interop.foreign import PATIENCE_SECONDS, running
from tests.support.agent import TRUST_DOMAIN, RunningAgent, entry_for_me

ME = f"spiffe://{TRUST_DOMAIN}/test/me"
AUDIENCE = "orders.example"
HEADER = ["-H", "workload.spiffe.io: true"]
STREAMS = ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"]


@dataclass(frozen=True, slots=True)
class Grpcurl:
    """grpcurl with an agent."""

    program: Path
    agent: RunningAgent

    def argv(self, *words: str, options: Sequence[str] = HEADER) -> list[str | Path]:
        return [self.program, "-plaintext", "-unix", *options, self.agent.socket, *words]

    def finished(
        self, *words: str, options: Sequence[str] = HEADER
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words, options=options),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def output(self, *words: str, options: Sequence[str] = HEADER) -> str:
        done = self.finished(*words, options=options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method: str, **request: Any) -> Any:
        """Call a method with one response and return the response."""
        options = [*HEADER, "-d", json.dumps(request)]
        return json.loads(self.output(f"SpiffeWorkloadAPI/{method}", options=options))

    def first(self, method: str) -> Any:
        """Return the first message of a stream."""
        with running(self.argv(f"SpiffeWorkloadAPI/{method}")) as stream:
            return stream.next()


@pytest.fixture
def tool(grpcurl: Path, agent_factory: AgentFactory) -> Grpcurl:
    return Grpcurl(grpcurl, agent_factory())


def test_services_are_listed_and_described(tool: Grpcurl) -> None:
    # grpcurl asks grpc.reflection.v1, which the agent lists, and v1alpha only where v1 is missing.
    assert tool.output("list").split() == [
        "SpiffeWorkloadAPI",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    methods = {f"SpiffeWorkloadAPI.{name}" for name in [*STREAMS, "FetchJWTSVID"]}
    assert methods <= set(tool.output("list", "SpiffeWorkloadAPI").split())
    described = tool.output("describe", "SpiffeWorkloadAPI")
    assert (
        "rpc FetchX509SVID ( .X509SVIDRequest ) returns ( stream .X509SVIDResponse );" in described
    )
    assert "map<string, bytes> bundles" in tool.output("describe", "X509BundlesResponse")


def test_health_is_served_without_the_header(tool: Grpcurl) -> None:
    answer = tool.output("grpc.health.v1.Health/Check", options=[])
    assert json.loads(answer) == {"status": "SERVING"}


def test_svid_has_its_key_and_is_signed_by_the_bundle(tool: Grpcurl) -> None:
    [svid] = tool.first("FetchX509SVID")["svids"]
    [bundle] = tool.first("FetchX509Bundles")["bundles"].values()

    leaf = x509.load_der_x509_certificate(b64decode(svid["x509_svid"]))
    key = load_der_private_key(b64decode(svid["x509_svid_key"]), password=None)
    assert svid["spiffe_id"] == ME
    assert key.public_key() == leaf.public_key()
    assert bundle == svid["bundle"]
    leaf.verify_directly_issued_by(x509.load_der_x509_certificate(b64decode(bundle)))


def test_jwt_is_validated_for_its_audience_only(tool: Grpcurl) -> None:
    [svid] = tool.call("FetchJWTSVID", audience=[AUDIENCE])["svids"]
    request = {"svid": svid["svid"], "audience": AUDIENCE}

    assert tool.call("ValidateJWTSVID", **request)["spiffe_id"] == ME
    wrong = json.dumps({**request, "audience": "other-audience"})
    refused = tool.finished("SpiffeWorkloadAPI/ValidateJWTSVID", options=[*HEADER, "-d", wrong])
    assert "Code: InvalidArgument" in refused.stderr
    assert [*tool.first("FetchJWTBundles")["bundles"]] == [f"spiffe://{TRUST_DOMAIN}"]


@pytest.mark.parametrize("method", [*STREAMS, "FetchJWTSVID"])
def test_refusals_have_their_status(
    grpcurl: Path, agent_factory: AgentFactory, method: str
) -> None:
    stranger = Grpcurl(grpcurl, agent_factory(f"entries: [{entry_of_another_user()}]"))
    request = ["-d", json.dumps({"audience": [AUDIENCE]} if method == "FetchJWTSVID" else {})]

    without_header = stranger.finished(f"SpiffeWorkloadAPI/{method}", options=request)
    assert "Code: InvalidArgument" in without_header.stderr
    assert "security header missing" in without_header.stderr
    without_identity = stranger.finished(f"SpiffeWorkloadAPI/{method}", options=[*HEADER, *request])
    assert "Code: PermissionDenied" in without_identity.stderr
    assert "no identity issued" in without_identity.stderr


def entry_of_another_user() -> str:
    return f'{{spiffe_id: /test/other, selectors: ["unix:uid:{os.getuid() + 1}"]}}'


def test_unknown_method_is_unimplemented(tool: Grpcurl) -> None:
    done = tool.finished("SpiffeWorkloadAPI/FetchWITSVID")
    assert "Code: Unimplemented" in done.stderr


def test_stream_pushes_the_svid_of_an_edited_entry(tool: Grpcurl) -> None:
    with running(tool.argv("SpiffeWorkloadAPI/FetchX509SVID")) as stream:
        before = stream.next()
        tool.agent.entries.write_text(entry_for_me("/test/edited"))
        tool.agent.hang_up()
        after = stream.next()

    assert [svid["spiffe_id"] for svid in before["svids"]] == [ME]
    assert [svid["spiffe_id"] for svid in after["svids"]] == [
        f"spiffe://{TRUST_DOMAIN}/test/edited"
    ]


def test_deadline_ends_a_stream(tool: Grpcurl) -> None:
    done = tool.finished("SpiffeWorkloadAPI/FetchX509SVID", options=[*HEADER, "-max-time", "3"])
    assert json.loads(done.stdout)["svids"][0]["spiffe_id"] == ME
    assert "Code: DeadlineExceeded" in done.stderr
