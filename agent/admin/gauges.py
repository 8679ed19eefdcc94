"""The gauges of the metrics, read from the parts at each scrape."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.kernel.caller import Weakness
from agent.telemetry.metrics import NEVER, Levels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.admin.readiness import Readiness
    from agent.authority.authority_set import Authority
    from agent.authority.signer import ManagedAuthority
    from agent.gate.gate import Gate
    from agent.svids.jwt import JwtSvids
    from agent.svids.x509 import X509Svids
    from agent.workloads.streams import Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """Reads the state of the parts. `streaming` are the methods whose streams stay open."""

    readiness: Readiness
    authority: ManagedAuthority
    x509_svids: X509Svids
    jwt_svids: JwtSvids
    streams: Streams
    gate: Gate
    streaming: Sequence[str]

    def levels(self) -> Levels:
        """Return the present value of each gauge."""
        streams = Counter(stream.method for stream in self.streams.open)
        first_expiry = self.x509_svids.first_expiry
        authorities = self.authority.authorities
        signing: dict[str, Authority] = {
            "x509": authorities.active_x509,
            "jwt": authorities.active_jwt,
        }
        return Levels(
            ready=not self.readiness.not_ready_because(),
            connections=len(self.gate),
            streams={method: streams[method] for method in self.streaming},
            svids={"x509": len(self.x509_svids), "jwt": len(self.jwt_svids)},
            svid_expiry=NEVER if first_expiry is None else first_expiry.timestamp(),
            authority_expiry={kind: a.not_after.timestamp() for kind, a in signing.items()},
            authority_lifetime={
                kind: (a.not_after - a.not_before).total_seconds() for kind, a in signing.items()
            },
            authority_failing=bool(self.authority.failure),
            weak_proofs={
                each.name.lower(): self.gate.weaknesses.get(each.value, 0) for each in Weakness
            },
        )
