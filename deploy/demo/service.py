"""One process of `make demo`: a service, or the impostor, with py-spiffe as its SPIFFE library.

It prints one line of JSON for each thing that happens, and ends at the end of stdin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from cryptography import x509
from spiffe import SpiffeId, WorkloadApiClient, X509Source
from spiffe.errors import PySpiffeError
from spiffetls import ListenOptions, ServerTlsMode, dial, listen
from spiffetls.tlsconfig.authorize import authorize_id

if TYPE_CHECKING:
    from OpenSSL import SSL
    from spiffe import X509Svid

TIMEOUT_SECONDS = 20.0


def main() -> None:
    """Run one role until the end of stdin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["serve", "dial", "impostor"])
    parser.add_argument("--uid", type=int, help="become this user before the first connect")
    parser.add_argument("--name", help="which identity to use, if the agent serves several")
    parser.add_argument("--peer", help="the SPIFFE ID that the peer must have")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.uid is not None:
        become(options.uid)
    if options.role == "impostor":
        impostor()
    else:
        with X509Source(timeout_in_seconds=TIMEOUT_SECONDS, svid_picker=picker(options.name)) as me:
            (serve if options.role == "serve" else call)(me, SpiffeId(options.peer), options.port)


def become(uid: int) -> None:
    """Give up root. The modules are loaded, so the user need not be able to read this checkout."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def picker(name: str) -> Any:
    """Return a function that picks the identity with this name in its path."""

    def pick(svids: list[X509Svid]) -> X509Svid:
        return next(svid for svid in svids if name in str(svid.spiffe_id).split("/"))

    return pick


def serve(me: X509Source, peer: SpiffeId, port: int) -> None:
    """Accept one mTLS connection from `peer`, then report every new SVID."""
    options = ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=authorize_id(peer))
    listener = listen(f"127.0.0.1:{port}", me, options)
    report(spiffe_id=str(me.svid.spiffe_id), port=listener.getsockname()[1])
    connection, _address = listener.accept()
    connection.recv(64)
    connection.sendall(b"welcome")
    report(peer=peer_of(connection))
    connection.close()
    listener.close()
    me.subscribe_for_updates(lambda: report(spiffe_id=str(me.svid.spiffe_id)))
    sys.stdin.read()


def call(me: X509Source, peer: SpiffeId, port: int) -> None:
    """Call `peer` over mTLS."""
    report(spiffe_id=str(me.svid.spiffe_id))
    connection = dial(f"127.0.0.1:{port}", me, authorize_fn=authorize_id(peer))
    connection.sendall(b"hello")
    report(peer=peer_of(connection), answer=connection.recv(64).decode())
    connection.close()


def peer_of(connection: SSL.Connection) -> str:
    """Return the SPIFFE ID in the peer's certificate."""
    extensions = connection.get_peer_certificate().to_cryptography().extensions
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(san.get_values_for_type(x509.UniformResourceIdentifier)[0])


def impostor() -> None:
    """Ask for an X.509-SVID, report the refusal, and stay for `vouchd explain`."""
    with WorkloadApiClient(default_timeout=TIMEOUT_SECONDS) as client:
        try:
            report(spiffe_id=str(client.fetch_x509_svid().spiffe_id))
        except PySpiffeError as error:
            status: Any = error.__cause__  # the error of gRPC
            report(refused=f"{status.code().name}: {status.details()}", pid=os.getpid())
        sys.stdin.read()


def report(**fields: object) -> None:
    """Print one line of JSON at once."""
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()
