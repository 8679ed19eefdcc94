"""The commands that call the Workload API: fetch, watch, validate, health.

The agent attests this process like any workload. To see the identities of a program, run the
command as the program's user. Answers are verified before they are shown.
"""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from agent.cli.options import audience_option, output_option, socket_option, timeout_option
from agent.cli.output import Data, Format, show
from agent.cli.store import to_pem, write_update
from agent.cli.verify import parse_jwt_bundles, parse_x509_bundles, verify_jwt, verify_update
from agent.client.workload import WorkloadClient
from agent.clock import SystemClock
from agent.errors import NoIdentityError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.cli.verify import VerifiedUpdate, VerifiedX509Svid
    from agent.client.workload import ReceivedJwtSvid

_FIRST_RETRY_SECONDS = 0.2
_LAST_RETRY_SECONDS = 10.0

# RFC 4514 section 3 has no name for this attribute; this is OpenSSL's.
_NAMES = {NameOID.SERIAL_NUMBER: "serialNumber"}

_CLOCK = SystemClock()


@click.group()
def fetch() -> None:
    """Fetch the SVIDs and bundles of this process, once.

    The agent attests this process: run the command as the user of the program in question.
    """


@fetch.command("x509", epilog="Example: vouchd fetch x509 --write /run/web/svid")
@socket_option
@timeout_option
@output_option
@click.option(
    "--write",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write svid.N.pem, svid.N.key (mode 0600) and bundle.N.pem to DIR.",
)
def fetch_x509(socket: Path, timeout: float, output: Format, directory: Path | None) -> None:
    """Fetch the X.509-SVIDs of this process.

    Private keys are not printed: --write writes them to files.
    """
    with WorkloadClient(socket, timeout) as client:
        update = verify_update(client.fetch_x509_svids(), _CLOCK.now())
    answer = _update_data(update, output)
    if directory is not None:
        answer["written"] = [str(path) for path in write_update(update, directory)]
    show(answer, output, _CLOCK.now())


@fetch.command("jwt", epilog="Example: vouchd fetch jwt -a https://db.example.org")
@socket_option
@timeout_option
@output_option
@audience_option(multiple=True)
@click.option("--spiffe-id", default="", metavar="ID", help="Only the SVID with this SPIFFE ID.")
def fetch_jwt(
    socket: Path, timeout: float, output: Format, audience: tuple[str, ...], spiffe_id: str
) -> None:
    """Fetch JWT-SVIDs of this process for an audience.

    A JWT-SVID is a bearer token: everybody with a copy can use it until it expires.
    """
    with WorkloadClient(socket, timeout) as client:
        svids = _fetch_jwt_svids(client, audience, spiffe_id)
        bundles = parse_jwt_bundles(client.fetch_jwt_bundles())
    now = _CLOCK.now()
    answer: list[Data] = []
    for svid in svids:
        valid = verify_jwt(svid, audience, bundles, now)
        answer.append(
            {
                "spiffe_id": svid.spiffe_id,
                "hint": svid.hint,
                "audience": valid.audience,
                "expires_at": valid.expires_at,
                "token": svid.token,
            }
        )
    show({"svids": answer}, output, now)


def _fetch_jwt_svids(
    client: WorkloadClient, audience: tuple[str, ...], spiffe_id: str
) -> tuple[ReceivedJwtSvid, ...]:
    try:
        return client.fetch_jwt_svids(audience, spiffe_id)
    except NoIdentityError as error:
        if not spiffe_id:
            raise
        raise NoIdentityError(
            f"no identity issued: this process has no identity {spiffe_id}; omit --spiffe-id to see"
            " all of its identities"
        ) from error


@fetch.command("bundles", epilog="Example: vouchd fetch bundles --output json")
@socket_option
@timeout_option
@output_option
def fetch_bundles(socket: Path, timeout: float, output: Format) -> None:
    """Fetch the trust bundles: the X.509 and JWT authorities to verify SVIDs with."""
    with WorkloadClient(socket, timeout) as client:
        x509_bundles = parse_x509_bundles(client.fetch_x509_bundles())
        jwt_bundles = parse_jwt_bundles(client.fetch_jwt_bundles())
    answer: list[Data] = []
    for domain in sorted({*x509_bundles, *jwt_bundles}):
        jwt_keys = jwt_bundles[domain].jwt_authorities if domain in jwt_bundles else {}
        answer.append(
            {
                "trust_domain": domain.name,
                "x509_authorities": _authorities_data(x509_bundles.get(domain, ()), output),
                "jwt_authorities": [
                    {"kid": kid, "key_type": _key_type(key)} for kid, key in jwt_keys.items()
                ],
            }
        )
    show({"bundles": answer}, output, _CLOCK.now())


@click.group()
def watch() -> None:
    """Follow the SVIDs of this process."""


@watch.command("x509", epilog="Example: vouchd watch x509")
@socket_option
@timeout_option
@output_option
def watch_x509(socket: Path, timeout: float, output: Format) -> None:
    """Print the X.509-SVIDs now and after each change, until Ctrl-C or SIGTERM (exit code 0).

    An error before the first update ends the command. Later errors, such as a restart of the agent,
    are printed to stderr, and the command reconnects.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        _watch(socket, timeout, output)


def _watch(socket: Path, timeout: float, output: Format) -> None:
    never_set, updated = threading.Event(), False
    pause = _FIRST_RETRY_SECONDS
    while True:
        try:
            with WorkloadClient(socket, timeout) as client:
                for received in client.watch_x509_svids():
                    update = verify_update(received, _CLOCK.now())
                    show(_update_data(update, output), output, _CLOCK.now())
                    updated, pause = True, _FIRST_RETRY_SECONDS
        except (UnavailableError, NoIdentityError) as error:
            if not updated:
                raise
            click.echo(f"vouchd: {error}; trying again in {pause:g} s", err=True)
            never_set.wait(pause)
            pause = min(pause * 2, _LAST_RETRY_SECONDS)


@click.group()
def validate() -> None:
    """Have the agent validate a token."""


@validate.command("jwt", epilog="Example: vouchd validate jwt -a https://db.example.org TOKEN")
@socket_option
@timeout_option
@output_option
@audience_option(multiple=False)
@click.argument("token")
def validate_jwt(socket: Path, timeout: float, output: Format, audience: str, token: str) -> None:
    """Validate the JWT-SVID TOKEN for an audience, and print its claims.

    The exit code is 1 if the token is not valid.
    """
    with WorkloadClient(socket, timeout) as client:
        valid = client.validate_jwt_svid(audience, token)
    show({"spiffe_id": valid.spiffe_id, "claims": valid.claims}, output, _CLOCK.now())


@click.command(epilog="Example: vouchd health --socket /run/vouchd/agent.sock")
@socket_option
@timeout_option
@output_option
def health(socket: Path, timeout: float, output: Format) -> None:
    """Check that the agent serves: exit code 0 if it does. This process needs no identity."""
    with WorkloadClient(socket, timeout) as client:
        status = client.health()
    if status != "SERVING":
        raise UnavailableError(
            f"the agent at {socket} reports {status}; see its log, or vouchd status"
        )
    show({"status": status}, output, _CLOCK.now())


# --- output -----------------------------------------------------------------------------


def _update_data(update: VerifiedUpdate, output: Format) -> dict[str, Data]:
    return {
        "svids": [_svid_data(svid, output) for svid in update.svids],
        "federated_bundles": [
            {"trust_domain": domain.name, "authorities": _authorities_data(authorities, output)}
            for domain, authorities in update.federated.items()
        ],
    }


def _svid_data(svid: VerifiedX509Svid, output: Format) -> dict[str, Data]:
    leaf = svid.chain[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {
        "spiffe_id": str(svid.spiffe_id),
        "hint": svid.hint,
        "valid_from": leaf.not_valid_before_utc,
        "expires_at": leaf.not_valid_after_utc,
        "serial": f"{leaf.serial_number:x}",
        "key_type": _key_type(leaf.public_key()),
        "dns_names": names.get_values_for_type(x509.DNSName),
        **_pem("chain_pem", svid.chain, output),
        "authorities": _authorities_data(svid.authorities, output),
    }


def _authorities_data(authorities: Iterable[x509.Certificate], output: Format) -> list[Data]:
    return [
        {
            "subject": authority.subject.rfc4514_string(_NAMES),
            "serial": f"{authority.serial_number:x}",
            "expires_at": authority.not_valid_after_utc,
            "key_type": _key_type(authority.public_key()),
            **_pem("pem", [authority], output),
        }
        for authority in authorities
    ]


def _pem(name: str, certificates: Iterable[x509.Certificate], output: Format) -> Mapping[str, str]:
    """Return a member with the certificates in PEM, for JSON output only."""
    return {name: to_pem(certificates).decode()} if output is Format.JSON else {}


def _key_type(key: object) -> str:
    match key:
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
        case ec.EllipticCurvePublicKey():
            return f"EC {key.curve.name}"
        case _:
            return type(key).__name__
