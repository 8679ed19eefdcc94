"""A workload under a test's control, in a container, a cgroup or on the host.

`python -m tests.support.ask AGENT CONTROL` connects to the test's socket CONTROL, reads `ask` or
`fork` there, and answers with a line of JSON. Without CONTROL it asks once.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from agent.pb import workloadapi_pb2 as pb
from tests.support import raw


def ask(path: str) -> list[str] | int | None:
    """Return the SPIFFE IDs of this process, or the gRPC status of the refusal."""
    client = raw.connect(path)
    stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
    try:
        response = pb.X509SVIDResponse.FromString(client.message(stream))
    except AssertionError:
        return client.calls[stream].status
    finally:
        client.sock.close()
    return [svid.spiffe_id for svid in response.svids]


def serve(agent: str, control: str) -> None:
    """Answer commands until the test closes the control connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(control)
        with sock.makefile("rw") as lines:
            for line in lines:
                answer = _in_child(agent) if line == "fork\n" else ask(agent)
                lines.write(f"{json.dumps(answer)}\n")
                lines.flush()


def _in_child(agent: str) -> list[str] | int | None:
    read, write = os.pipe()
    with os.fdopen(read) as pipe:
        if (child := os.fork()) == 0:
            os.write(write, json.dumps(ask(agent)).encode())
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        answer: list[str] | int | None = json.loads(pipe.read())
        return answer


if __name__ == "__main__":
    if len(sys.argv) > 2:
        serve(*sys.argv[1:])
    else:
        sys.stdout.write(json.dumps(ask(sys.argv[1])))
