"""agent.yaml: every mistake has its place, and every default is the documented one.

The files in tests/vectors/config/bad list their problems in comments at the top, as those of the
entries do. tests/documents has a test that the schemas are those of the models.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.attestation.plugins import known_options
from agent.config.addresses import LoopbackAddress
from agent.config.files import load_settings
from agent.config.settings import (
    AuthoritySettings,
    LogFormat,
    LogLevel,
    LogSettings,
    Settings,
    TelemetrySettings,
    parse_settings,
)
from agent.config.yaml_document import Source, read
from agent.entries.load import load_entries
from agent.errors import ConfigError
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from attestors.api import Options
from attestors.k8s import K8sOptions
from attestors.lib.kubelet import KubeletOptions

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests/vectors/config"
BAD = sorted((VECTORS / "bad").glob("*.yaml"))
BASE = PurePath("/etc/vouchd")


class UnixOptions(Options):
    sha256: bool = True
    limit: int = Field(1, gt=0)


class TlsOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    certs: list[str] = []


class DockerOptions(Options):
    socket: str = "/var/run/docker.sock"
    tls: TlsOptions | None = None


MODELS: dict[str, type[BaseModel]] = {"unix": UnixOptions, "docker": DockerOptions}


def _parse(content: str | bytes, name: str = "agent.yaml") -> Settings:
    data = content.encode() if isinstance(content, str) else content
    return parse_settings(Source(name=name, content=data), BASE, MODELS)


def test_there_are_many_bad_files() -> None:
    assert len(BAD) >= 25


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_is_refused_with_each_mistake_at_its_place(path: Path) -> None:
    content = path.read_bytes()
    expected = re.findall(r"# expect: (\d+):(\d+): (.*)", content.decode(errors="replace"))
    with pytest.raises(ConfigError) as refusal:
        _parse(content, path.name)
    found = refusal.value.problems
    assert [(p.line, p.column) for p in found] == [(int(a), int(b)) for a, b, _ in expected]
    for problem, (_, _, fragment) in zip(found, expected, strict=True):
        assert fragment in problem.message
        assert not re.search(r"pydantic|https?://errors|[Ii]nput|dictionary|instance", str(problem))


def test_every_setting_but_the_trust_domain_has_a_default() -> None:
    assert _parse("trust_domain: example.org") == Settings.model_construct(
        trust_domain=TrustDomain("example.org"),
        data_dir=PurePath("/var/lib/vouchd"),
        socket_path=PurePath("/run/vouchd/agent.sock"),
        socket_mode=0o666,
        socket_owner=None,
        socket_group=None,
        admin_socket_path=None,
        entries=(PurePath("/etc/vouchd/entries.d"),),
        attestors={"unix": UnixOptions()},
        allow_unauthenticated_verifiers=False,
        authority=AuthoritySettings(
            x509_ca_ttl=timedelta(hours=24),
            x509_svid_ttl=timedelta(hours=1),
            jwt_svid_ttl=timedelta(minutes=5),
            key_type=KeyType.EC_P256,
        ),
        log=LogSettings(level=LogLevel.INFO, format=LogFormat.TEXT),
    )


def test_every_option_is_parsed_and_every_path_made_absolute() -> None:
    assert _parse((VECTORS / "good/every_option.yaml").read_bytes()) == Settings.model_construct(
        trust_domain=TrustDomain("example.org"),
        data_dir=PurePath("/etc/data"),
        socket_path=PurePath("/run/agent.sock"),
        socket_mode=0o660,
        socket_owner="1000",
        socket_group="workloads",
        admin_socket_path=PurePath("/etc/vouchd/admin.sock"),
        entries=(PurePath("/etc/vouchd/entries.d"), PurePath("/srv/more.yaml")),
        attestors={"unix": UnixOptions(sha256=False, limit=5), "docker": DockerOptions()},
        allow_unauthenticated_verifiers=True,
        authority=AuthoritySettings(
            x509_ca_ttl=timedelta(days=7),
            x509_svid_ttl=timedelta(hours=28),
            jwt_svid_ttl=timedelta(seconds=90),
            key_type=KeyType.RSA_4096,
        ),
        telemetry=TelemetrySettings.model_construct(
            listen=LoopbackAddress(host="::1", port=9464), group="prometheus"
        ),
        log=LogSettings(level=LogLevel.DEBUG, format=LogFormat.JSON),
    )


def test_quota_of_one_user_cannot_exceed_the_quota_of_all() -> None:
    with pytest.raises(ConfigError) as refused:
        _parse("trust_domain: example.org\nlimits: {streams: 10, streams_per_user: 11}\n")
    [problem] = refused.value.problems
    assert (
        problem.message
        == "streams_per_user: 11 for one user is more than streams, 10, for all users"
    )
    with pytest.raises(ConfigError, match="3000 for one user is more than connections, 10"):
        _parse("trust_domain: example.org\nlimits: {connections: 10}\n")


def test_svid_ttl_may_be_a_sixth_of_the_authority_s() -> None:
    settings = _parse("trust_domain: example.org\nauthority: {x509_svid_ttl: 4h}")
    assert settings.authority.max_svid_ttl == timedelta(hours=4)
    assert settings.authority.x509_svid_ttl == timedelta(hours=4)


def test_socket_path_may_be_as_long_as_linux_allows() -> None:
    path = "/" + "x" * 106
    assert str(_parse(f"trust_domain: example.org\nsocket_path: {path}").socket_path) == path


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("127.0.0.1:9464", LoopbackAddress(host="127.0.0.1", port=9464)),
        ("127.9.9.9:1", LoopbackAddress(host="127.9.9.9", port=1)),
        ("/run/vouchd/telemetry.sock", PurePath("/run/vouchd/telemetry.sock")),
        ("telemetry.sock", PurePath("/etc/vouchd/telemetry.sock")),
        ("./127.0.0.1:9464", PurePath("/etc/vouchd/127.0.0.1:9464")),
    ],
)
def test_telemetry_listens_on_a_path_or_a_loopback_address(written: str, found: object) -> None:
    settings = _parse(f"trust_domain: example.org\ntelemetry: {{listen: '{written}'}}")
    assert settings.telemetry.listen == found


def test_loopback_address_prints_unchanged() -> None:
    assert str(LoopbackAddress(host="127.0.0.1", port=9464)) == "127.0.0.1:9464"
    assert str(LoopbackAddress(host="::1", port=9464)) == "[::1]:9464"


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        _parse("trust_domain: example.org").socket_mode = 0o777  # type: ignore[misc]


def test_settings_model_refuses_to_validate_outside_parse_settings() -> None:
    with pytest.raises(TypeError, match="parse_settings"):
        Settings.model_validate({"trust_domain": "example.org", "data_dir": "here"})


# --- the files we ship -------------------------------------------------------------------------
SHIPPED_MODELS = known_options()


def test_configuration_for_make_run_stays_inside_the_checkout() -> None:
    settings = load_settings(ROOT / "config/agent.yaml", SHIPPED_MODELS)
    assert settings.data_dir == ROOT / ".run/data"
    assert settings.socket_path == ROOT / ".run/agent.sock"
    assert settings.entries == (ROOT / ".run/entries.d",)


def test_annotated_example_has_every_option_with_its_default() -> None:
    path = ROOT / "config/agent.example.yaml"
    settings = load_settings(path, SHIPPED_MODELS)
    defaults = parse_settings(
        Source(name="", content=b"trust_domain: example.org"), BASE, SHIPPED_MODELS
    )
    # The comment in the file says that this one is not the default.
    shown = settings.model_copy(update={"admin_socket_path": None})
    assert shown == defaults
    text = path.read_text(encoding="utf-8")
    schema = json.loads((ROOT / "config/schema/agent.schema.json").read_text(encoding="utf-8"))
    for section in (schema, *schema["$defs"].values()):
        for key in section.get("properties", {}):
            assert re.search(rf"^ *(# *)?{key}:", text, re.MULTILINE), key


def test_commented_out_attestors_of_the_example_are_valid_and_complete() -> None:
    text = (ROOT / "config/agent.example.yaml").read_text(encoding="utf-8")
    switched_on = re.sub(r"^  # ( *[a-z0-9_-]+:.*)$", r"  \1", text, flags=re.MULTILINE)
    source = Source(name="agent.example.yaml", content=switched_on.encode())
    attestors = parse_settings(source, BASE, SHIPPED_MODELS).attestors
    assert set(attestors) == set(SHIPPED_MODELS)
    for name, options in attestors.items():
        assert options == type(options)() or name == "k8s"
        for key in type(options).model_fields:
            assert name == "unix" or f"{key}:" in text
    example = K8sOptions.model_validate({"kubelet": {"node_name": "node-1"}}).kubelet
    assert example is not None
    shown = attestors["k8s"].kubelet
    assert shown == example.model_copy(update={"token_file": example.bearer_file})
    for key in KubeletOptions.model_fields:
        assert key in text


@pytest.mark.parametrize(
    ("written", "column", "message"),
    [
        ("docker: {socket: 'unix:///var/run/docker.sock'}", 30, "alone: /var/run/docker.sock"),
        ("docker: {podman_socket: podman.sock}", 37, "'podman.sock' is not an absolute path"),
        ("podman-rootless: {socket: 'run/{uid}/x'}", 39, "'run/{uid}/x' is not an absolute path"),
        ("systemd: {bus: /run/dbus/system_bus_socket}", 28, "such as unix:path=/run/dbus/system"),
        ("k8s: {kubelet: on}", 28, "kubelet must be a mapping"),
        ("k8s: {kubelet: }", 28, "write `off`, or how to reach the kubelet"),
        ("k8s: {kubelet: {}}", 28, "give node_name or node_name_env"),
        ("k8s: {kubelet: {node_name: a, wait_seconds: 30}}", 57, "less than or equal to 20"),
        ("k8s: {kubelet: {node_name_env: A, prot: 1}}", 47, "did you mean 'port'?"),
    ],
)
def test_mistake_in_attestor_options_is_reported_once(
    written: str, column: int, message: str
) -> None:
    text = f"trust_domain: example.org\nattestors: {{{written}}}\n"
    with pytest.raises(ConfigError) as refusal:
        parse_settings(Source(name="a", content=text.encode()), BASE, SHIPPED_MODELS)
    [problem] = refusal.value.problems
    assert (problem.line, problem.column) == (2, column)
    assert message in problem.message
    assert "function-" not in problem.message


def test_example_entries_load_without_a_warning() -> None:
    loaded = load_entries(
        [ROOT / "config/entries.d"],
        TrustDomain("example.org"),
        frozenset({"unix"}),
        max_svid_ttl=timedelta(hours=4),
        now=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert [entry.id for entry in loaded.entries.entries] == [
        "root",
        "first-user",
        "first-user-openssl",
        "staff",
    ]
    assert loaded.warnings == ()


# --- the schemas we ship -----------------------------------------------------------------------
def _throttled(schema: dict[str, Any], value: object, root: dict[str, Any]) -> list[str]:
    """As much of JSON Schema as our schemas use."""
    if "$ref" in schema:
        return _throttled(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        return min((_throttled(each, value, root) for each in schema["anyOf"]), key=len)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not any(isinstance(value, kinds.get(kind, int)) for kind in wanted):
        return [f"{value!r} is not {wanted}"]
    found = []
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{value!r} does not match {schema['pattern']}")
    if isinstance(value, str) and "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} is not one of {schema['enum']}")
    if isinstance(value, list):
        found += [c for item in value for c in _throttled(schema["items"], item, root)]
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{key} is missing" for key in schema.get("required", ()) if key not in value]
        found += [f"{key} is unknown" for key in value if key not in schema["properties"]]
        for key in value.keys() & schema["properties"].keys():
            found += _throttled(schema["properties"][key], value[key], root)
    return found


def _against_schema(name: str, path: Path) -> list[str]:
    schema = json.loads((ROOT / "config/schema" / name).read_text(encoding="utf-8"))
    return _throttled(schema, read(Source(name="", content=path.read_bytes())).data, schema)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("agent.schema.json", ROOT / "config/agent.yaml"),
        ("agent.schema.json", ROOT / "config/agent.example.yaml"),
        ("agent.schema.json", VECTORS / "good/every_option.yaml"),
        ("entries.schema.json", ROOT / "config/entries.d/example.yaml"),
        ("entries.schema.json", ROOT / "tests/vectors/entries/good/every_field.yaml"),
        ("entries.schema.json", ROOT / "tests/vectors/entries/good/commented_out.yaml"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_schema_accepts_every_valid_file(name: str, path: Path) -> None:
    assert _against_schema(name, path) == []


@pytest.mark.parametrize(
    ("name", "vector", "complaint"),
    [
        ("agent.schema.json", "config/bad/unknown-key.yaml", "socketpath is unknown"),
        ("agent.schema.json", "config/bad/comment-only.yaml", "None is not"),
        ("agent.schema.json", "config/bad/mode-not-quoted.yaml", "438 is not"),
        ("agent.schema.json", "config/bad/ca-ttl-bad.yaml", "'1w' does not match"),
        ("agent.schema.json", "config/bad/key-type.yaml", "'ed25519' is not one of"),
        ("entries.schema.json", "entries/bad/selectors-text.yaml", "'unix:uid:1' is not"),
        ("entries.schema.json", "entries/bad/selectors-missing.yaml", "selectors is missing"),
        ("entries.schema.json", "entries/bad/unknown-key.yaml", "dns_name is unknown"),
        ("entries.schema.json", "entries/bad/ttl-null.yaml", "None is not"),
    ],
)
def test_schema_finds_common_mistakes(name: str, vector: str, complaint: str) -> None:
    (found,) = _against_schema(name, ROOT / "tests/vectors" / vector)
    assert found.startswith(complaint)


class BrokenOptions(Options):
    """The options of a plug-in with a defect."""

    @model_validator(mode="after")
    def look_up(self) -> Self:
        raise KeyError("region")


def test_plug_in_whose_options_raise_is_a_problem_of_its_line() -> None:
    source = Source(name="a", content=b"trust_domain: example.org\nattestors:\n  cloud: {}\n")
    with pytest.raises(ConfigError) as raised:
        parse_settings(source, BASE, {"cloud": BrokenOptions})
    [problem] = raised.value.problems
    assert str(problem).startswith("a:3:3: the options of attestor 'cloud' cannot be checked")
    assert "KeyError: 'region'" in problem.message
