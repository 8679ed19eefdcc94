"""A workload with py-spiffe (`spiffe` on PyPI) and `spiffe-tls`."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from common import WRONG_AUDIENCE, fingerprints, refusal, report
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from OpenSSL import SSL
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient, X509Source
from spiffetls import ListenOptions, ServerTlsMode, dial, listen
from spiffetls.tlsconfig.authorize import authorize_member_of

if TYPE_CHECKING:
    from spiffe import X509BundleSet, X509Svid

TIMEOUT_SECONDS = 20.0


def fetch(client: WorkloadApiClient, audiences: list[str]) -> None:
    context = client.fetch_x509_context()
    bundles = client.fetch_x509_bundles()
    report(
        {
            "svids": [describe(svid, bundles) for svid in context.x509_svids],
            "x509_bundles": by_trust_domain(bundles),
            "x509_svid_bundle": by_trust_domain(context.x509_bundle_set),
            "jwt": fetch_jwt(client, audiences),
        }
    )


def describe(svid: X509Svid, bundles: X509BundleSet) -> dict[str, Any]:
    # py-spiffe does not verify chains; its dependency `cryptography` does.
    bundle = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    verifier = PolicyBuilder().store(Store(list(bundle.x509_authorities))).build_client_verifier()
    verified = verifier.verify(svid.leaf, svid.cert_chain[1:])
    (uri,) = [
        name for name in verified.subjects if isinstance(name, x509.UniformResourceIdentifier)
    ]
    return {
        "spiffe_id": str(svid.spiffe_id),
        "verified_as": uri.value,
        "key_matches": svid.private_key.public_key() == svid.leaf.public_key(),
    }


def by_trust_domain(bundles: X509BundleSet) -> dict[str, list[str]]:
    return {
        bundle.trust_domain.name: fingerprints(bundle.x509_authorities)
        for bundle in bundles.bundles
    }


def fetch_jwt(client: WorkloadApiClient, audiences: list[str]) -> dict[str, Any]:
    svid = client.fetch_jwt_svid(set(audiences))
    bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)

    def validate(audience: str) -> str:
        return str(JwtSvid.parse_and_validate(svid.token, bundle, {audience}).spiffe_id)

    def ask(audience: str) -> str:
        return str(client.validate_jwt_svid(svid.token, audience).spiffe_id)

    return {
        "spiffe_id": str(svid.spiffe_id),
        "audience": sorted(svid.audience),
        "validated_by_client": [validate(audience) for audience in audiences],
        "validated_by_agent": [ask(audience) for audience in audiences],
        "wrong_audience_by_client": refusal(lambda: validate(WRONG_AUDIENCE)),
        "wrong_audience_by_agent": refusal(lambda: ask(WRONG_AUDIENCE)),
    }


def refused(client: WorkloadApiClient) -> None:
    report(
        {
            "x509": refusal(client.fetch_x509_context),
            "x509_bundles": refusal(client.fetch_x509_bundles),
            "jwt": refusal(lambda: client.fetch_jwt_svid({"any-audience"})),
            "jwt_bundles": refusal(client.fetch_jwt_bundles),
        }
    )


def watch() -> None:
    with X509Source(timeout_in_seconds=TIMEOUT_SECONDS) as source:

        def report_svid() -> None:
            context = source.get_x509_context()
            svid = context.default_svid
            (bundle,) = context.x509_bundle_set.bundles
            report(
                {
                    "spiffe_id": str(svid.spiffe_id),
                    "serial": f"{svid.leaf.serial_number:x}",
                    "expires_at": svid.leaf.not_valid_after_utc.isoformat(),
                    "authorities": fingerprints(bundle.x509_authorities),
                }
            )

        source.subscribe_for_updates(report_svid)
        report_svid()
        threading.Event().wait()


def serve() -> None:
    """Accept one connection of a peer in the same trust domain."""
    with X509Source(timeout_in_seconds=TIMEOUT_SECONDS) as source:
        options = ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=same_trust_domain(source))
        listener = listen("127.0.0.1:0", source, options)
        report({"port": listener.getsockname()[1]})
        connection, _address = listener.accept()
        confirm(connection)
        listener.close()


def call(port: str) -> None:
    with X509Source(timeout_in_seconds=TIMEOUT_SECONDS) as source:
        confirm(dial(f"127.0.0.1:{port}", source, authorize_fn=same_trust_domain(source)))


def same_trust_domain(source: X509Source) -> Any:
    svid = source.get_x509_context().default_svid
    return authorize_member_of(TrustDomain(svid.spiffe_id.trust_domain.name))


def confirm(connection: SSL.Connection) -> None:
    """Exchange a byte, which confirms the handshake to both ends; report the peer."""
    connection.sendall(b"!")
    connection.recv(1)
    names = connection.get_peer_certificate().to_cryptography().extensions
    uris = names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    )
    report({"peer": str(SpiffeId(uris[0]))})
    connection.close()


def main(command: str, arguments: list[str]) -> None:
    match command:
        case "watch":
            watch()
        case "serve":
            serve()
        case "dial":
            call(*arguments)
        case _:
            with WorkloadApiClient(default_timeout=TIMEOUT_SECONDS) as client:
                fetch(client, arguments) if command == "fetch" else refused(client)


main(sys.argv[1], sys.argv[2:])
