"""The daemon's configuration: `agent.yaml` in, validated settings out.

Every setting but the trust domain has a default. Relative paths are relative to the file they
stand in. What an attestor's options mean is the attestor's affair: its own model judges them, and
its complaints get a line and a column like all others.

Nothing here looks at the disk: whether a path exists is found out by those who use it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
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

from agent.config.values import Duration, Text, as_text, format_duration, long_enough
from agent.config.yaml_document import Document, Source, nearest, read
from agent.errors import ConfigError, Problem
from agent.kernel.caller import Proof
from agent.kernel.credentials import MAX_SOCKET_PATH
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.spiffe.lifetimes import longest_svid

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PORT = 65535

_MODE = re.compile(r"0?[0-7]{3}")
# Whatever ends like a port is meant as an address; a path of that name can be written as ./NAME.
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^/]*)\]|(?P<v4>[^/\[\]]*)):(?P<port>[0-9]{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopbackAddress:
    """A TCP port that only this host reaches.

    Raises:
        ValueError: others reach it, or it is none.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise ValueError(
                f"{self.host or 'every address'} is not a loopback address: whoever reaches it"
                " reads what the agent does, without a password. Write 127.0.0.1:PORT,"
                ' "[::1]:PORT" or the path of a Unix socket, and let something that checks who'
                " asks pass it on"
            )
        if not 1 <= self.port <= MAX_PORT:
            raise ValueError(f"{self.port} is no port: write one from 1 to {MAX_PORT}")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may come to mean any address


# --- one field at a time -----------------------------------------------------------------------
def _parse_trust_domain(value: object) -> TrustDomain:
    return TrustDomain(as_text(value))


def _parse_path(value: object, info: ValidationInfo) -> PurePath:
    text = as_text(value)
    if text.startswith("~"):
        raise ValueError(f"{text!r}: '~' is not expanded, write the directory out")
    if "\0" in text:
        raise ValueError("a path cannot hold a NUL byte")
    base, path = info.context, PurePath(text)
    if not isinstance(base, PurePath):
        raise TypeError("settings are validated by parse_settings only")
    # The base has no links in it (agent.config.files), so that going up is the same as cutting off.
    while path.parts[:1] == ("..",):
        base, path = base.parent, PurePath(*path.parts[1:])
    return base / path


def _parse_socket_path(value: object, info: ValidationInfo) -> PurePath:
    path = _parse_path(value, info)
    length = len(str(path).encode())
    if length > MAX_SOCKET_PATH:
        raise ValueError(f"{str(path)!r} has {length} bytes; Linux allows {MAX_SOCKET_PATH}")
    return path


def _not_the_public_one(path: PurePath, info: ValidationInfo) -> PurePath:
    if path == info.data.get("socket_path"):
        raise ValueError("this is socket_path too: the two sockets need different paths")
    return path


def _parse_listen(value: object, info: ValidationInfo) -> PurePath | LoopbackAddress:
    text = as_text(value)
    if found := _ADDRESS.fullmatch(text):
        return LoopbackAddress(host=found["v6"] or found["v4"], port=int(found["port"]))
    return _parse_socket_path(text, info)


def _apart_from_the_others(section: TelemetrySettings, info: ValidationInfo) -> TelemetrySettings:
    for name in ("socket_path", "admin_socket_path"):
        if section.listen is not None and section.listen == info.data.get(name):
            raise ValueError(f"listen is {name} too: the two sockets need different paths")
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
    # A number is as good a name for a user or group as a word.
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else as_text(value)


def _some(value: object) -> object:
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


_PATH = WithJsonSchema({"type": "string", "minLength": 1, "format": "path"})
_NAME = WithJsonSchema({"type": ["string", "integer"]})
_Path = Annotated[PurePath, BeforeValidator(_parse_path), _PATH]
_Name = Annotated[str | None, BeforeValidator(_parse_name), _NAME]
# Judged even where the default holds, because x509_ca_ttl may have been lowered.
_SvidTtl = Annotated[Duration, AfterValidator(_fits_ca), Field(validate_default=True)]


# --- the whole ---------------------------------------------------------------------------------
class _Section(BaseModel):
    # No field takes null: a default that is None says "left out", and needs no validation.
    model_config = ConfigDict(extra="forbid", frozen=True)


class LogLevel(StrEnum):
    """The least important event that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """What a log line looks like: for people, or for machines."""

    TEXT = "text"
    JSON = "json"


class LogSettings(_Section):
    """How the daemon logs."""

    level: LogLevel = LogLevel.INFO
    """The least important event that is logged."""
    format: LogFormat = LogFormat.TEXT
    """`text` for people, `json` for machines."""
    audit: bool = True
    """Whether each SVID that is handed out, and each refusal, has its line, whatever the level."""


class TelemetrySettings(_Section):
    """Metrics for Prometheus, and what probes ask: `/metrics`, `/live`, `/ready` over HTTP."""

    listen: Annotated[PurePath | LoopbackAddress | None, BeforeValidator(_parse_listen), _PATH] = (
        None
    )
    """The path of a Unix socket, or a loopback address with a port. Nothing if left out."""
    group: _Name = None
    """The group, by name or number, whose members may connect to that Unix socket too."""


class AuthoritySettings(_Section):
    """The embedded certificate authority."""

    x509_ca_ttl: Duration = timedelta(hours=24)
    """How long a signing certificate, and a JWT signing key, is valid."""
    x509_svid_ttl: _SvidTtl = timedelta(hours=1)
    """How long an X.509-SVID is valid. At most a sixth of x509_ca_ttl."""
    jwt_svid_ttl: _SvidTtl = timedelta(minutes=5)
    """How long a JWT-SVID is valid. At most a sixth of x509_ca_ttl."""
    key_type: KeyType = KeyType.EC_P256
    """The kind of key the authority signs with."""

    @property
    def max_svid_ttl(self) -> timedelta:
        """The longest life an SVID can be promised, whoever asks for it."""
        return longest_svid(self.x509_ca_ttl)


_Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _at_most_all(count: int, info: ValidationInfo) -> int:
    name = str(info.field_name).removesuffix("_per_user")
    most = info.data.get(name)
    if most is not None and count > most:
        raise ValueError(f"{count} for one user are more than {name}, {most}, allows all together")
    return count


# Judged even where the default holds, because the other number may have been lowered.
_Share = Annotated[_Count, AfterValidator(_at_most_all), Field(validate_default=True)]


class LimitSettings(_Section):
    """What is too much. Half of what one user may have is for what it runs in any one cgroup."""

    connections: _Count = 4000
    """Open connections, of all. Each takes four descriptors."""
    connections_per_user: _Share = 3000
    """Open connections of one user, or of one cgroup."""
    streams: _Count = 16000
    """Open streams, of all."""
    streams_per_user: _Share = 12000
    """Open streams of one user, or of one cgroup."""
    attestations: _Count = 4000
    """Calls that have no answer yet, of all."""
    attestations_per_user: _Share = 3000
    """Calls that have no answer yet, of one user or one cgroup."""
    requests_per_second: _Count = 500
    """Calls and connects of one user, or of one cgroup, in the long run. More of them wait."""
    first_request_timeout: Duration = timedelta(seconds=10)
    """How long a connection may be open without a request."""
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
    """The trust domain of every identity issued here."""
    data_dir: _Path = PurePath("/var/lib/vouchd")
    """Where the authority keeps its keys. Made with mode 0700 if missing."""
    socket_path: Annotated[PurePath, BeforeValidator(_parse_socket_path), _PATH] = PurePath(
        "/run/vouchd/agent.sock"
    )
    """The Workload API's Unix socket. Its directory is made if missing."""
    socket_mode: Annotated[
        int,
        BeforeValidator(_parse_mode),
        WithJsonSchema({"type": "string", "pattern": f"^{_MODE.pattern}$"}),
    ] = 0o666
    """The socket's permissions: octal, in quotes."""
    socket_owner: _Name = None
    """The user, by name or number, who owns the socket; the agent's if left out."""
    socket_group: _Name = None
    """The group, by name or number, that owns the socket; the agent's if left out."""
    admin_socket_path: Annotated[
        PurePath | None,
        BeforeValidator(_parse_socket_path),
        AfterValidator(_not_the_public_one),
        _PATH,
    ] = None
    """The administration socket, for root and the agent's own user. There is none if left out."""
    admin_socket_group: _Name = None
    """The group, by name or number, whose members may administer the agent too."""
    entries: Annotated[tuple[_Path, ...], BeforeValidator(_some)] = (
        PurePath("/etc/vouchd/entries.d"),
    )
    """Files of registration entries, and directories whose *.yaml files are."""
    attestors: Annotated[
        dict[Text, Any],
        BeforeValidator(_some),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": ["object", "null"]}}),
    ] = Field(default_factory=lambda: {"unix": None})
    """The attestors that are on, each with its options."""
    require_proof: Proof = Proof.PIDFD_OPEN
    """The weakest proof of who connected that is accepted. `peerpidfd` needs Linux 6.5."""
    reattest_interval: Duration = timedelta(seconds=60)
    """How often, at least, the caller of an open stream is attested again."""
    allow_unauthenticated_verifiers: bool = False
    """Whether processes without an identity may still read our own trust domain's bundle."""
    svid_cache: bool = True
    """Whether X.509-SVIDs outlast a restart of the agent, encrypted in data_dir."""
    authority: AuthoritySettings = AuthoritySettings()
    """The embedded certificate authority."""
    telemetry: Annotated[TelemetrySettings, AfterValidator(_apart_from_the_others)] = (
        TelemetrySettings()
    )
    """Metrics for Prometheus, and what probes ask. Off unless it says where to listen."""
    limits: LimitSettings = LimitSettings()
    """What one user, one cgroup, and all together may have."""
    log: LogSettings = LogSettings()
    """How the daemon logs."""


def parse_settings(
    source: Source, base_dir: PurePath, options_models: Mapping[str, type[BaseModel]]
) -> Settings:
    """Read `agent.yaml`.

    Args:
        source: the file.
        base_dir: the directory that relative paths start from; absolute, and free of links.
        options_models: for each attestor there is, the model of its options. In the result,
            `attestors` maps the name of each that is on to an instance of its model.

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
    """The options of each attestor that is on; what is wrong with them goes to `problems`."""
    written = data.get("attestors", {"unix": None}) if isinstance(data, dict) else None
    parsed: dict[str, BaseModel] = {}
    for name, options in written.items() if isinstance(written, dict) else ():
        loc = ("attestors", name)
        if (model := options_models.get(name)) is None:
            message = f"unknown attestor {name!r}; {nearest(name, options_models)}"
            problems.append(document.problem(loc, message, at_key=True))
            continue
        try:
            # `unix:` with nothing behind it means its defaults.
            parsed[name] = document.validate(model, {} if options is None else options, loc=loc)
        except ConfigError as error:
            problems.extend(error.problems)
        except Exception as error:  # noqa: BLE001 - the validators of a plug-in may raise anything
            message = f"the options of attestor {name!r} cannot be checked: its own code raised"
            reason = f"{message} {type(error).__name__}: {error}"
            problems.append(document.problem(loc, reason, at_key=True))
    return parsed
