"""What state the agent is in: the levels that its metrics show, and whether it is ready."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from agent.kernel.caller import Weakness
from agent.telemetry.metrics import NEVER, Levels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.admin.operations import Site
    from agent.authority.authority_set import Authority
    from agent.gate.gate import Gate


class Readiness:
    """Looks at the parts when it is asked. `streaming` are the methods whose streams stay open."""

    def __init__(self, site: Site, gate: Gate, streaming: Sequence[str]) -> None:
        self._site = site
        self._gate = gate
        self._streaming = streaming

    def obstacles(self) -> tuple[str, ...]:
        """What keeps the agent from serving; nothing if it is ready.

        There are entries in force in any case: without, it would not have started.
        """
        found = []
        if not self._gate.accepts:
            found.append("no connections are accepted: it is starting or stopping")
        if not self._site.authority.can_sign:
            found.append("the authority cannot sign: vouchd status says why")
        return tuple(found)

    def levels(self) -> Levels:
        """See Levels."""
        site = self._site
        streams = Counter(stream.method for stream in site.streams.streams)
        first_expiry = site.svids.first_expiry
        authorities = site.authority.authorities
        signing: dict[str, Authority] = {
            "x509": authorities.active_x509,
            "jwt": authorities.active_jwt,
        }
        return Levels(
            ready=not self.obstacles(),
            connections=len(self._gate),
            streams={method: streams[method] for method in self._streaming},
            svids={"x509": len(site.svids), "jwt": len(site.jwt_svids)},
            svid_expiry=NEVER if first_expiry is None else first_expiry.timestamp(),
            authority_expiry={kind: a.not_after.timestamp() for kind, a in signing.items()},
            authority_lifetime={
                kind: (a.not_after - a.not_before).total_seconds() for kind, a in signing.items()
            },
            authority_failing=bool(site.authority.failure),
            weak_proofs={
                each.name.lower(): self._gate.weaknesses.get(each.value, 0) for each in Weakness
            },
        )
