"""The model of `agent.yaml`: YAML in, validated settings out.

Every setting but the trust domain has a default. Each attestor has a model of its own options,
whose mistakes get a line and a column like all others. Nothing here reads the disk: whether a path
exists shows when it is used.
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
)

from agent.config.addresses import FilePath, Listen, OptionalSocketPath, SocketPath
from agent.config.values import Duration, Text, as_text, format_duration, long_enough
from agent.config.yaml_document import Document, Source, nearest, read
from agent.errors import ConfigError, Problem
from agent.kernel.caller import Proof
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.spiffe.lifetimes import longest_svid

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODE = re.compile(r"0?[0-7]{3}")


# --- fields ------------------------------------------------------------------------------------
def _parse_trust_domain(value: object) -> TrustDomain:
    return TrustDomain(as_text(value))


def _differs_from_public(path: PurePath, info: ValidationInfo) -> PurePath:
    if path == info.data.get("socket_path"):
        raise ValueError("also socket_path: the two sockets need different paths")
    return path


def _has_own_path(section: TelemetrySettings, info: ValidationInfo) -> TelemetrySettings:
    for name in ("socket_path", "admin_socket_path"):
        if section.listen is not None and section.listen == info.data.get(name):
            raise ValueError(f"listen is also {name}: the two sockets need different paths")
    return section


def _parse_mode(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueError
            'put the octal mode in quotes, such as "0666": without them YAML reads another number'
        )
    if not _MODE.fullmatch(value):
        raise ValueError(f'{value!r} is not an octal mode such as "0666" or "0660"')
    return int(value, 8)


def _parse_name(value: object) -> str:
    # Users and groups have numbers too.
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else as_text(value)


def _not_empty(value: object) -> object:
    if value in ({}, []):
        raise ValueError("name at least one: without any, no process gets an identity")
    return value


def _fits_ca(ttl: timedelta, info: ValidationInfo) -> timedelta:
    ca_ttl = info.data.get("x509_ca_ttl")
    if ca_ttl is not None and ttl > longest_svid(ca_ttl):
        raise ValueError(
            f"{format_duration(ttl)} is more than a sixth of x509_ca_ttl, so that an SVID could"
            f" outlive the authority that signed it: give {format_duration(ca_ttl)} / 6 ="
            f" {format_duration(longest_svid(ca_ttl))} at most, or raise x509_ca_ttl"
        )
    return long_enough(ttl)


_NAME = WithJsonSchema({"type": ["string", "integer"]})
_Name = Annotated[str | None, BeforeValidator(_parse_name), _NAME]
# The default is validated too, because x509_ca_ttl may have been lowered below it.
_SvidTtl = Annotated[Duration, AfterValidator(_fits_ca), Field(validate_default=True)]


# --- sections ----------------------------------------------------------------------------------
class _Section(BaseModel):
    # No field accepts null: a default of None means "left out" and is not validated.
    model_config = ConfigDict(extra="forbid", frozen=True)


class LogLevel(StrEnum):
    """The least important event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


class LogSettings(_Section):
    """How the daemon logs."""

    level: LogLevel = LogLevel.INFO
    """The least important event that is logged."""
    format: LogFormat = LogFormat.TEXT
    """`text` for people, `json` for machines."""
    audit: bool = True
    """Whether each issued SVID and each refused call is logged, at any level."""


class TelemetrySettings(_Section):
    """HTTP endpoint for Prometheus (`/metrics`) and probes (`/live`, `/ready`)."""

    listen: Listen = None
    """The path of a Unix socket, or a loopback address with a port. Default: no endpoint."""
    group: _Name = None
    """A group, by name or number, whose members may also connect to that Unix socket."""


class AuthoritySettings(_Section):
    """The embedded certificate authority."""

    x509_ca_ttl: Duration = timedelta(hours=24)
    """Lifetime of a signing certificate and of a JWT signing key."""
    x509_svid_ttl: _SvidTtl = timedelta(hours=1)
    """Lifetime of an X.509-SVID. At most a sixth of x509_ca_ttl."""
    jwt_svid_ttl: _SvidTtl = timedelta(minutes=5)
    """Lifetime of a JWT-SVID. At most a sixth of x509_ca_ttl."""
    key_type: KeyType = KeyType.EC_P256
    """The type of the authority's keys."""

    @property
    def max_svid_ttl(self) -> timedelta:
        """The longest lifetime that an SVID can have without outliving its authority."""
        return longest_svid(self.x509_ca_ttl)


_Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _at_most_all(count: int, info: ValidationInfo) -> int:
    name = str(info.field_name).removesuffix("_per_user")
    most = info.data.get(name)
    if most is not None and count > most:
        raise ValueError(f"{count} for one user is more than {name}, {most}, for all users")
    return count


# The default is validated too, because the other number may have been lowered below it.
_Share = Annotated[_Count, AfterValidator(_at_most_all), Field(validate_default=True)]
_Bytes = Annotated[int, Field(ge=64 * 1024, le=1 << 40)]
_BytesShare = Annotated[_Bytes, AfterValidator(_at_most_all), Field(validate_default=True)]


class LimitSettings(_Section):
    """Quotas. One cgroup of a user may use half of that user's quota."""

    connections: _Count = 4000
    """Open connections of all users. Each takes two descriptors."""
    connections_per_user: _Share = 3000
    """Open connections of one user, or of one cgroup."""
    streams: _Count = 16000
    """Open streams of all users."""
    streams_per_user: _Share = 12000
    """Open streams of one user, or of one cgroup."""
    attestations: _Count = 4000
    """Unanswered calls of all users."""
    attestations_per_user: _Share = 3000
    """Unanswered calls of one user, or of one cgroup."""
    buffer_bytes: _Bytes = 64 * 1024 * 1024
    """Bytes of unfinished requests and of responses that clients do not read, of all users."""
    buffer_bytes_per_user: _BytesShare = 16 * 1024 * 1024
    """The same of one user, or of one cgroup."""
    response_bytes: Annotated[int, Field(ge=64 * 1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    """Largest response. A larger one is refused. gRPC clients take 4 MiB by default."""
    requests_per_second: _Count = 500
    """Sustained rate of calls and connects of one user, or of one cgroup. More of them wait."""
    first_request_timeout: Duration = timedelta(seconds=10)
    """Time that a connection may be open without a request."""
    lockout: bool = True
    """Lock a user out for a second when its processes connect and hang up without end."""


class Settings(_Section):
    """The configuration of the vouchd agent. All paths are absolute."""

    trust_domain: Annotated[
        TrustDomain,
        BeforeValidator(_parse_trust_domain),
        WithJsonSchema(
            {"type": "string", "pattern": "^[a-z0-9._-]{1,255}$", "examples": ["example.org"]}
        ),
    ]
    """The trust domain of every identity that the agent issues."""
    data_dir: FilePath = PurePath("/var/lib/vouchd")
    """The directory of the authority's keys. Created with mode 0700 if missing."""
    socket_path: SocketPath = PurePath("/run/vouchd/agent.sock")
    """The Workload API's Unix socket. Its directory is created if missing."""
    socket_mode: Annotated[
        int,
        BeforeValidator(_parse_mode),
        WithJsonSchema({"type": "string", "pattern": f"^{_MODE.pattern}$"}),
    ] = 0o666
    """The socket's permissions: octal, in quotes."""
    socket_owner: _Name = None
    """The owner of the socket, by name or number. Default: the agent's user."""
    socket_group: _Name = None
    """The group of the socket, by name or number. Default: the agent's group."""
    admin_socket_path: Annotated[OptionalSocketPath, AfterValidator(_differs_from_public)] = None
    """The admin socket, for root and the agent's own user. Default: no admin socket."""
    admin_socket_group: _Name = None
    """A group, by name or number, whose members may also use the admin socket."""
    entries: Annotated[tuple[FilePath, ...], BeforeValidator(_not_empty)] = (
        PurePath("/etc/vouchd/entries.d"),
    )
    """Files of registration entries, and directories in which every *.yaml file is one."""
    attestors: Annotated[
        dict[Text, Any],
        BeforeValidator(_not_empty),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": ["object", "null"]}}),
    ] = Field(default_factory=lambda: {"unix": None})
    """The enabled attestors, each with its options."""
    require_proof: Proof = Proof.PIDFD_OPEN
    """The weakest accepted proof of the caller's identity. `peerpidfd` needs Linux 6.5."""
    reattest_interval: Duration = timedelta(seconds=60)
    """The longest time after which the caller of an open stream is attested again."""
    allow_unauthenticated_verifiers: bool = False
    """Whether a process without an identity may read the bundle of the agent's trust domain."""
    svid_cache: bool = True
    """Whether X.509-SVIDs survive a restart of the agent, encrypted in data_dir."""
    authority: AuthoritySettings = AuthoritySettings()
    """The embedded certificate authority."""
    telemetry: Annotated[TelemetrySettings, AfterValidator(_has_own_path)] = TelemetrySettings()
    """HTTP endpoint for metrics and probes. Off unless `listen` is set."""
    limits: LimitSettings = LimitSettings()
    """Quotas of one user, of one cgroup, and of all users."""
    log: LogSettings = LogSettings()
    """How the daemon logs."""


def parse_settings(
    source: Source, base_dir: PurePath, options_models: Mapping[str, type[BaseModel]]
) -> Settings:
    """Parse `agent.yaml`.

    Args:
        source: the file.
        base_dir: the directory that relative paths start at; absolute and without links.
        options_models: the options model of each known attestor. In the result, `attestors` maps
            the name of each enabled one to an instance of its model.

    Raises:
        ConfigError: with every mistake in the file.
    """
    document = read(source)
    data = {} if document.data is None else document.data
    problems = list(document.problems)
    attestors = _parse_attestors(document, data, options_models, problems)
    try:
        settings = document.validate(Settings, data, context=base_dir)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return settings.model_copy(update={"attestors": attestors})


def _parse_attestors(
    document: Document,
    data: object,
    options_models: Mapping[str, type[BaseModel]],
    problems: list[Problem],
) -> dict[str, BaseModel]:
    """Return the options of each enabled attestor; add their mistakes to `problems`."""
    written = data.get("attestors", {"unix": None}) if isinstance(data, dict) else None
    parsed: dict[str, BaseModel] = {}
    for name, options in written.items() if isinstance(written, dict) else ():
        loc = ("attestors", name)
        if (model := options_models.get(name)) is None:
            message = f"unknown attestor {name!r}; {nearest(name, options_models)}"
            problems.append(document.problem(loc, message, at_key=True))
            continue
        try:
            # `unix:` without a value means its defaults.
            parsed[name] = document.validate(model, {} if options is None else options, loc=loc)
        except ConfigError as error:
            problems.extend(error.problems)
        except Exception as error:  # noqa: BLE001 - the validators of a plug-in may raise anything
            message = f"the options of attestor {name!r} cannot be checked: its own code raised"
            reason = f"{message} {type(error).__name__}: {error}"
            problems.append(document.problem(loc, reason, at_key=True))
    return parsed
