"""A workload that prints when each message of its stream arrives: `python watcher.py SOCKET`."""

from __future__ import annotations

import sys
import time

from tests.bench.servers import x509
from tests.bench.wire import connected

with connected(sys.argv[1]) as connection:
    connection.call(x509())
    while True:
        for _message in connection.read():
            print(time.perf_counter(), flush=True)  # noqa: T201 - the benchmark reads it
