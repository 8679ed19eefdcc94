"""A fake kubelet that serves a pod list over TLS and checks the bearer token."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import ssl
import tempfile
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Callable

NODE = "node-1"


def pod(name: str = "web", uid: str | None = None, **containers: str) -> dict[str, Any]:
    """A running pod of the namespace `shop`; `containers` are names and container IDs."""
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": uid or str(uuid.uuid4()),
            "labels": {"app": name, "tier": "front"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{name}-7d", "uid": "u-1"}
            ],
        },
        "spec": {"serviceAccountName": f"{name}-account", "nodeName": NODE, "containers": []},
        "status": {
            "phase": "Running",
            "containerStatuses": [status(key, value) for key, value in containers.items()],
        },
    }


def status(name: str, container_id: str) -> dict[str, Any]:
    """The status of a container in a pod."""
    return {
        "name": name,
        "image": f"registry.example/{name}:1",
        "imageID": f"registry.example/{name}@sha256:{'1' * 64}",
        "containerID": f"containerd://{container_id}",
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection or refuse the certificate."""


class KubeletServer:
    """A fake kubelet. Owns its threads and a directory with CA, token and certificates.

    Without TLS it acts as the read-only port. `pods` is the pod list; `body` and `code` replace the
    response; `allow` delays each response until it is set.
    """

    def __init__(self, *, tls: bool = True) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vouchd-kubelet-", dir="/tmp"))
        self.pods: list[dict[str, Any]] = []
        self.body: bytes | None = None
        self.code = 200
        self.allow = threading.Event()
        self.allow.set()
        self.asked = 0
        self.authorizations: list[str | None] = []
        """The header of each request."""
        self.when_asked: dict[int, Callable[[], None]] = {}
        """The function to call at the first, second, … request, before its answer."""
        self.token = f"token-{uuid.uuid4()}"
        self._token_file.write_text(f"{self.token}\n")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.renew()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._tls = tls
        if tls:
            self._server.socket = self._context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        else:
            self.token = ""
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.allow.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        shutil.rmtree(self.directory)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the attestor."""
        if not self._tls:
            return {"read_only_port": self.port}
        return {
            "node_name": NODE,
            "port": self.port,
            "ca_file": str(self.directory / "ca.crt"),
            "token_file": str(self._token_file),
        }

    def renew(self, name: str = NODE) -> None:
        """Replace CA and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begin = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + dt.timedelta(days=20000))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        chain = self.directory / "serving.pem"
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        chain.write_bytes(pem + secret)
        self._context.load_cert_chain(chain)
        self._replace("ca.crt", pem)

    def require_client_certificate(self) -> None:
        """Refuse clients without a certificate of this CA, and ignore tokens."""
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(self.directory / "ca.crt")
        self.token = ""

    def renew_token(self) -> None:
        """Replace the token, in the file too; the old one is refused."""
        self.token = f"token-{uuid.uuid4()}"
        self._replace("token", self.token.encode())

    @property
    def _token_file(self) -> Path:
        return self.directory / "token"

    def _replace(self, name: str, content: bytes) -> None:
        fresh = self.directory / f"{name}.new"
        fresh.write_bytes(content)
        fresh.rename(self.directory / name)

    def _answer(self, authorization: str | None) -> tuple[int, bytes]:
        if self.token and authorization != f"Bearer {self.token}":
            return 401, b"Unauthorized"
        if self.body is not None:
            return self.code, self.body
        listed: dict[str, Any] = {
            "kind": "PodList",
            "apiVersion": "v1",
            "metadata": {},
            "items": self.pods or None,
        }
        return self.code, json.dumps(listed).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        kubelet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kubelet.asked += 1
                kubelet.authorizations.append(self.headers["Authorization"])
                if (act := kubelet.when_asked.get(kubelet.asked)) is not None:
                    act()
                kubelet.allow.wait()
                code, body = kubelet._answer(self.headers["Authorization"])
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                pass

        return Handler
