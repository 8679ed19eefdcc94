import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "trust_domain", "started_at", "authority", "entries", "attestors", "connections", "x509_svids", "jwt_svids", "callers", "locked_out_uids")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ATTESTORS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    X509_SVIDS_FIELD_NUMBER: _ClassVar[int]
    JWT_SVIDS_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    LOCKED_OUT_UIDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    trust_domain: str
    started_at: _timestamp_pb2.Timestamp
    authority: AuthorityList
    entries: Entries
    attestors: _containers.RepeatedScalarFieldContainer[str]
    connections: int
    x509_svids: int
    jwt_svids: int
    callers: _containers.RepeatedCompositeFieldContainer[ConnectedCaller]
    locked_out_uids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[str] = ..., trust_domain: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., authority: _Optional[_Union[AuthorityList, _Mapping]] = ..., entries: _Optional[_Union[Entries, _Mapping]] = ..., attestors: _Optional[_Iterable[str]] = ..., connections: _Optional[int] = ..., x509_svids: _Optional[int] = ..., jwt_svids: _Optional[int] = ..., callers: _Optional[_Iterable[_Union[ConnectedCaller, _Mapping]]] = ..., locked_out_uids: _Optional[_Iterable[int]] = ...) -> None: ...

class AuthorityList(_message.Message):
    __slots__ = ("bundle_sequence", "authorities", "failure")
    BUNDLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    bundle_sequence: int
    authorities: _containers.RepeatedCompositeFieldContainer[Authority]
    failure: str
    def __init__(self, bundle_sequence: _Optional[int] = ..., authorities: _Optional[_Iterable[_Union[Authority, _Mapping]]] = ..., failure: _Optional[str] = ...) -> None: ...

class Authority(_message.Message):
    __slots__ = ("authority_id", "kind", "state", "since", "expires_at", "next_step", "next_step_at")
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_AT_FIELD_NUMBER: _ClassVar[int]
    authority_id: str
    kind: str
    state: str
    since: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    next_step: str
    next_step_at: _timestamp_pb2.Timestamp
    def __init__(self, authority_id: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., next_step: _Optional[str] = ..., next_step_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Entries(_message.Message):
    __slots__ = ("loaded", "loaded_at", "tried_at", "problems")
    LOADED_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    TRIED_AT_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    loaded: int
    loaded_at: _timestamp_pb2.Timestamp
    tried_at: _timestamp_pb2.Timestamp
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, loaded: _Optional[int] = ..., loaded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tried_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class ConnectedCaller(_message.Message):
    __slots__ = ("pid", "uid", "since", "spiffe_ids", "streams", "next_renewal")
    PID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_IDS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_RENEWAL_FIELD_NUMBER: _ClassVar[int]
    pid: int
    uid: int
    since: _timestamp_pb2.Timestamp
    spiffe_ids: _containers.RepeatedScalarFieldContainer[str]
    streams: _containers.RepeatedScalarFieldContainer[str]
    next_renewal: _timestamp_pb2.Timestamp
    def __init__(self, pid: _Optional[int] = ..., uid: _Optional[int] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., spiffe_ids: _Optional[_Iterable[str]] = ..., streams: _Optional[_Iterable[str]] = ..., next_renewal: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("process", "attestors", "verdict", "refused", "served", "refusals")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    ATTESTORS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    process: Process
    attestors: _containers.RepeatedCompositeFieldContainer[AttestorReport]
    verdict: Verdict
    refused: str
    served: _containers.RepeatedCompositeFieldContainer[Served]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    def __init__(self, process: _Optional[_Union[Process, _Mapping]] = ..., attestors: _Optional[_Iterable[_Union[AttestorReport, _Mapping]]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., refused: _Optional[str] = ..., served: _Optional[_Iterable[_Union[Served, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "uid", "user", "gid", "group", "supplementary_gids", "supplementary_groups", "proof", "weaknesses", "pidfd_inode", "command", "executable", "executable_file", "namespaces", "cgroup", "display_only_read_by_pid")
    PID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SUPPLEMENTARY_GIDS_FIELD_NUMBER: _ClassVar[int]
    SUPPLEMENTARY_GROUPS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    WEAKNESSES_FIELD_NUMBER: _ClassVar[int]
    PIDFD_INODE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FILE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_ONLY_READ_BY_PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    uid: int
    user: str
    gid: int
    group: str
    supplementary_gids: _containers.RepeatedScalarFieldContainer[int]
    supplementary_groups: _containers.RepeatedScalarFieldContainer[str]
    proof: str
    weaknesses: _containers.RepeatedScalarFieldContainer[str]
    pidfd_inode: int
    command: str
    executable: str
    executable_file: str
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    cgroup: _containers.RepeatedScalarFieldContainer[str]
    display_only_read_by_pid: DisplayOnly
    def __init__(self, pid: _Optional[int] = ..., uid: _Optional[int] = ..., user: _Optional[str] = ..., gid: _Optional[int] = ..., group: _Optional[str] = ..., supplementary_gids: _Optional[_Iterable[int]] = ..., supplementary_groups: _Optional[_Iterable[str]] = ..., proof: _Optional[str] = ..., weaknesses: _Optional[_Iterable[str]] = ..., pidfd_inode: _Optional[int] = ..., command: _Optional[str] = ..., executable: _Optional[str] = ..., executable_file: _Optional[str] = ..., namespaces: _Optional[_Iterable[str]] = ..., cgroup: _Optional[_Iterable[str]] = ..., display_only_read_by_pid: _Optional[_Union[DisplayOnly, _Mapping]] = ...) -> None: ...

class DisplayOnly(_message.Message):
    __slots__ = ("process_tree",)
    PROCESS_TREE_FIELD_NUMBER: _ClassVar[int]
    process_tree: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, process_tree: _Optional[_Iterable[str]] = ...) -> None: ...

class AttestorReport(_message.Message):
    __slots__ = ("attestor", "duration_seconds", "remembered", "selectors", "notes", "failure")
    ATTESTOR_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    attestor: str
    duration_seconds: float
    remembered: bool
    selectors: _containers.RepeatedScalarFieldContainer[str]
    notes: _containers.RepeatedScalarFieldContainer[str]
    failure: str
    def __init__(self, attestor: _Optional[str] = ..., duration_seconds: _Optional[float] = ..., remembered: _Optional[bool] = ..., selectors: _Optional[_Iterable[str]] = ..., notes: _Optional[_Iterable[str]] = ..., failure: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("selectors", "matched", "missed")
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    selectors: _containers.RepeatedScalarFieldContainer[str]
    matched: _containers.RepeatedCompositeFieldContainer[Matched]
    missed: _containers.RepeatedCompositeFieldContainer[Missed]
    def __init__(self, selectors: _Optional[_Iterable[str]] = ..., matched: _Optional[_Iterable[_Union[Matched, _Mapping]]] = ..., missed: _Optional[_Iterable[_Union[Missed, _Mapping]]] = ...) -> None: ...

class Matched(_message.Message):
    __slots__ = ("entry_id", "spiffe_id", "origin")
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    entry_id: str
    spiffe_id: str
    origin: str
    def __init__(self, entry_id: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., origin: _Optional[str] = ...) -> None: ...

class Missed(_message.Message):
    __slots__ = ("entry_id", "spiffe_id", "origin", "lacking", "expired_at", "no_spiffe_id")
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_AT_FIELD_NUMBER: _ClassVar[int]
    NO_SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    entry_id: str
    spiffe_id: str
    origin: str
    lacking: _containers.RepeatedCompositeFieldContainer[Lacking]
    expired_at: _timestamp_pb2.Timestamp
    no_spiffe_id: str
    def __init__(self, entry_id: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., origin: _Optional[str] = ..., lacking: _Optional[_Iterable[_Union[Lacking, _Mapping]]] = ..., expired_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., no_spiffe_id: _Optional[str] = ...) -> None: ...

class Lacking(_message.Message):
    __slots__ = ("wanted", "found")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    wanted: str
    found: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, wanted: _Optional[str] = ..., found: _Optional[_Iterable[str]] = ...) -> None: ...

class Served(_message.Message):
    __slots__ = ("at", "method", "spiffe_ids")
    AT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_IDS_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    method: str
    spiffe_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., method: _Optional[str] = ..., spiffe_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("at", "pid", "uid", "method", "code", "reason")
    AT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    pid: int
    uid: int
    method: str
    code: str
    reason: str
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., pid: _Optional[int] = ..., uid: _Optional[int] = ..., method: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DiffEntriesRequest(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[EntryFile]
    def __init__(self, files: _Optional[_Iterable[_Union[EntryFile, _Mapping]]] = ...) -> None: ...

class EntryFile(_message.Message):
    __slots__ = ("name", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class EntriesDiff(_message.Message):
    __slots__ = ("changed", "unchanged")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: _containers.RepeatedCompositeFieldContainer[CallerDiff]
    unchanged: int
    def __init__(self, changed: _Optional[_Iterable[_Union[CallerDiff, _Mapping]]] = ..., unchanged: _Optional[int] = ...) -> None: ...

class CallerDiff(_message.Message):
    __slots__ = ("pid", "uid", "gained", "lost")
    PID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GAINED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    pid: int
    uid: int
    gained: _containers.RepeatedScalarFieldContainer[str]
    lost: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pid: _Optional[int] = ..., uid: _Optional[int] = ..., gained: _Optional[_Iterable[str]] = ..., lost: _Optional[_Iterable[str]] = ...) -> None: ...

class KindRequest(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: str
    def __init__(self, kind: _Optional[str] = ...) -> None: ...

class AuthorityRequest(_message.Message):
    __slots__ = ("authority_id",)
    AUTHORITY_ID_FIELD_NUMBER: _ClassVar[int]
    authority_id: str
    def __init__(self, authority_id: _Optional[str] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Metrics(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...
