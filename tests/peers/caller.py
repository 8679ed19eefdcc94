"""A caller on demand: `python caller.py SOCKET` makes as many calls as each line of stdin says."""

from __future__ import annotations

import sys

from agent.pb import workloadapi_pb2
from tests.bench.servers import x509
from tests.bench.wire import connected

with connected(sys.argv[1]) as connection:
    for line in sys.stdin:
        message = b""
        for _ in range(int(line)):
            message = connection.fetch(x509())
        svids = workloadapi_pb2.X509SVIDResponse.FromString(message).svids
        print(f"{len(svids)} SVIDs", flush=True)  # noqa: T201 - the benchmark reads it
