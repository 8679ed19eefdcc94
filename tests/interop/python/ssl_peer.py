"""One end of mutual TLS with Python's `ssl`, from the files that `vouchd fetch x509 --write` makes.

It takes the peer's SPIFFE ID from the URI names of the peer's certificate.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
from pathlib import Path

TIMEOUT_SECONDS = 20.0
LOCALHOST = "127.0.0.1"


def context(role: int, directory: Path) -> ssl.SSLContext:
    result = ssl.SSLContext(role)
    result.minimum_version = ssl.TLSVersion.TLSv1_2
    result.check_hostname = False  # a SPIFFE ID is not a host name
    result.verify_mode = ssl.CERT_REQUIRED
    result.load_verify_locations(directory / "bundle.0.pem")
    result.load_cert_chain(directory / "svid.0.pem", directory / "svid.0.key")
    return result


def serve(directory: Path) -> None:
    server = context(ssl.PROTOCOL_TLS_SERVER, directory)
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.settimeout(TIMEOUT_SECONDS)
        report({"port": listener.getsockname()[1]})
        connection, _address = listener.accept()
        with connection:
            meet(server, connection, server_side=True)


def dial(directory: Path, port: str) -> None:
    client = context(ssl.PROTOCOL_TLS_CLIENT, directory)
    with socket.create_connection((LOCALHOST, int(port)), TIMEOUT_SECONDS) as connection:
        meet(client, connection, server_side=False)


def meet(tls: ssl.SSLContext, connection: socket.socket, *, server_side: bool) -> None:
    """Exchange a byte, which confirms the handshake to both ends; report the peer."""
    connection.settimeout(TIMEOUT_SECONDS)
    try:
        with tls.wrap_socket(connection, server_side=server_side) as secured:
            secured.sendall(b"!")
            if not secured.recv(1):
                report({"refused": "the peer hung up"})
                return
            names = secured.getpeercert()["subjectAltName"]
            (uri,) = [value for kind, value in names if kind == "URI"]
            report({"peer": uri})
    except OSError as error:  # includes ssl.SSLError
        report({"refused": str(error)})


def report(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


{"serve": serve, "dial": dial}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
