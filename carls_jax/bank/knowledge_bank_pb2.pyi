from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestFrame(_message.Message):
    __slots__ = ("request", "data")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    request: Request
    data: bytes
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReplyFrame(_message.Message):
    __slots__ = ("reply", "data")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    reply: Reply
    data: bytes
    def __init__(self, reply: _Optional[_Union[Reply, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ArrayHeader(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("protocol_version", "bank_id", "arrays", "hello", "change", "lookup", "history", "scan", "describe", "take_snapshot", "list_snapshots", "restore", "follow", "pin_snapshots", "verify_snapshot", "freeze")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BANK_ID_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SCAN_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    TAKE_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    LIST_SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    PIN_SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    bank_id: str
    arrays: _containers.RepeatedCompositeFieldContainer[ArrayHeader]
    hello: Hello
    change: Change
    lookup: Lookup
    history: History
    scan: Scan
    describe: Describe
    take_snapshot: TakeSnapshot
    list_snapshots: ListSnapshots
    restore: Restore
    follow: Follow
    pin_snapshots: PinSnapshots
    verify_snapshot: VerifySnapshot
    freeze: Freeze
    def __init__(self, protocol_version: _Optional[int] = ..., bank_id: _Optional[str] = ..., arrays: _Optional[_Iterable[_Union[ArrayHeader, _Mapping]]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., change: _Optional[_Union[Change, _Mapping]] = ..., lookup: _Optional[_Union[Lookup, _Mapping]] = ..., history: _Optional[_Union[History, _Mapping]] = ..., scan: _Optional[_Union[Scan, _Mapping]] = ..., describe: _Optional[_Union[Describe, _Mapping]] = ..., take_snapshot: _Optional[_Union[TakeSnapshot, _Mapping]] = ..., list_snapshots: _Optional[_Union[ListSnapshots, _Mapping]] = ..., restore: _Optional[_Union[Restore, _Mapping]] = ..., follow: _Optional[_Union[Follow, _Mapping]] = ..., pin_snapshots: _Optional[_Union[PinSnapshots, _Mapping]] = ..., verify_snapshot: _Optional[_Union[VerifySnapshot, _Mapping]] = ..., freeze: _Optional[_Union[Freeze, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("incarnation", "arrays", "last_alter", "identity", "applied", "looked_up", "history", "scanned", "description", "snapshot", "snapshots", "followed")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    LAST_ALTER_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    LOOKED_UP_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SCANNED_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    arrays: _containers.RepeatedCompositeFieldContainer[ArrayHeader]
    last_alter: int
    identity: Identity
    applied: Applied
    looked_up: LookedUp
    history: LookedUp
    scanned: Scanned
    description: Description
    snapshot: Snapshot
    snapshots: Snapshots
    followed: Followed
    def __init__(self, incarnation: _Optional[str] = ..., arrays: _Optional[_Iterable[_Union[ArrayHeader, _Mapping]]] = ..., last_alter: _Optional[int] = ..., identity: _Optional[_Union[Identity, _Mapping]] = ..., applied: _Optional[_Union[Applied, _Mapping]] = ..., looked_up: _Optional[_Union[LookedUp, _Mapping]] = ..., history: _Optional[_Union[LookedUp, _Mapping]] = ..., scanned: _Optional[_Union[Scanned, _Mapping]] = ..., description: _Optional[_Union[Description, _Mapping]] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., snapshots: _Optional[_Union[Snapshots, _Mapping]] = ..., followed: _Optional[_Union[Followed, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Identity(_message.Message):
    __slots__ = ("protocol_version", "bank_id", "shard_index", "num_shards")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BANK_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    bank_id: str
    shard_index: int
    num_shards: int
    def __init__(self, protocol_version: _Optional[int] = ..., bank_id: _Optional[str] = ..., shard_index: _Optional[int] = ..., num_shards: _Optional[int] = ...) -> None: ...

class Author(_message.Message):
    __slots__ = ("step", "clock", "source", "updated_at")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    step: int
    clock: str
    source: str
    updated_at: float
    def __init__(self, step: _Optional[int] = ..., clock: _Optional[str] = ..., source: _Optional[str] = ..., updated_at: _Optional[float] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("table", "author", "client", "number", "create_table", "create_rows", "update", "push", "delete", "advance", "flush", "evict", "alter")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREATE_TABLE_FIELD_NUMBER: _ClassVar[int]
    CREATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    ADVANCE_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    EVICT_FIELD_NUMBER: _ClassVar[int]
    ALTER_FIELD_NUMBER: _ClassVar[int]
    table: str
    author: Author
    client: str
    number: int
    create_table: CreateTable
    create_rows: CreateRows
    update: Update
    push: Push
    delete: Delete
    advance: Advance
    flush: Flush
    evict: Evict
    alter: Alter
    def __init__(self, table: _Optional[str] = ..., author: _Optional[_Union[Author, _Mapping]] = ..., client: _Optional[str] = ..., number: _Optional[int] = ..., create_table: _Optional[_Union[CreateTable, _Mapping]] = ..., create_rows: _Optional[_Union[CreateRows, _Mapping]] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., push: _Optional[_Union[Push, _Mapping]] = ..., delete: _Optional[_Union[Delete, _Mapping]] = ..., advance: _Optional[_Union[Advance, _Mapping]] = ..., flush: _Optional[_Union[Flush, _Mapping]] = ..., evict: _Optional[_Union[Evict, _Mapping]] = ..., alter: _Optional[_Union[Alter, _Mapping]] = ...) -> None: ...

class CreateTable(_message.Message):
    __slots__ = ("spec_json",)
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    def __init__(self, spec_json: _Optional[str] = ...) -> None: ...

class CreateRows(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Update(_message.Message):
    __slots__ = ("if_newer", "blend", "if_newer_fields")
    IF_NEWER_FIELD_NUMBER: _ClassVar[int]
    BLEND_FIELD_NUMBER: _ClassVar[int]
    IF_NEWER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    if_newer: bool
    blend: float
    if_newer_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, if_newer: _Optional[bool] = ..., blend: _Optional[float] = ..., if_newer_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("combine", "create")
    COMBINE_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    combine: str
    create: bool
    def __init__(self, combine: _Optional[str] = ..., create: _Optional[bool] = ...) -> None: ...

class Delete(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Advance(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Flush(_message.Message):
    __slots__ = ("fields",)
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fields: _Optional[_Iterable[str]] = ...) -> None: ...

class Evict(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Alter(_message.Message):
    __slots__ = ("spec_json",)
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    def __init__(self, spec_json: _Optional[str] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("sequence", "num_created", "num_deleted", "num_kept", "num_evicted", "is_repeated", "num_not_admitted")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_CREATED_FIELD_NUMBER: _ClassVar[int]
    NUM_DELETED_FIELD_NUMBER: _ClassVar[int]
    NUM_KEPT_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTED_FIELD_NUMBER: _ClassVar[int]
    IS_REPEATED_FIELD_NUMBER: _ClassVar[int]
    NUM_NOT_ADMITTED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    num_created: int
    num_deleted: int
    num_kept: int
    num_evicted: int
    is_repeated: bool
    num_not_admitted: int
    def __init__(self, sequence: _Optional[int] = ..., num_created: _Optional[int] = ..., num_deleted: _Optional[int] = ..., num_kept: _Optional[int] = ..., num_evicted: _Optional[int] = ..., is_repeated: _Optional[bool] = ..., num_not_admitted: _Optional[int] = ...) -> None: ...

class Lookup(_message.Message):
    __slots__ = ("table", "fields", "metadata", "create", "sources", "max_age_steps", "now", "clock", "reader")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_STEPS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    table: str
    fields: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.RepeatedScalarFieldContainer[str]
    create: bool
    sources: _containers.RepeatedScalarFieldContainer[str]
    max_age_steps: int
    now: int
    clock: str
    reader: Author
    def __init__(self, table: _Optional[str] = ..., fields: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Iterable[str]] = ..., create: _Optional[bool] = ..., sources: _Optional[_Iterable[str]] = ..., max_age_steps: _Optional[int] = ..., now: _Optional[int] = ..., clock: _Optional[str] = ..., reader: _Optional[_Union[Author, _Mapping]] = ...) -> None: ...

class LookedUp(_message.Message):
    __slots__ = ("num_created", "sources", "source_names", "clock_names")
    NUM_CREATED_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NAMES_FIELD_NUMBER: _ClassVar[int]
    num_created: int
    sources: _containers.RepeatedScalarFieldContainer[str]
    source_names: _containers.RepeatedScalarFieldContainer[str]
    clock_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, num_created: _Optional[int] = ..., sources: _Optional[_Iterable[str]] = ..., source_names: _Optional[_Iterable[str]] = ..., clock_names: _Optional[_Iterable[str]] = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("links",)
    LINKS_FIELD_NUMBER: _ClassVar[int]
    links: _containers.RepeatedCompositeFieldContainer[Lookup]
    def __init__(self, links: _Optional[_Iterable[_Union[Lookup, _Mapping]]] = ...) -> None: ...

class Followed(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: LookedUp
    def __init__(self, rows: _Optional[_Union[LookedUp, _Mapping]] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("table", "field", "source")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    table: str
    field: str
    source: str
    def __init__(self, table: _Optional[str] = ..., field: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class Scan(_message.Message):
    __slots__ = ("table", "fields", "metadata", "start", "num_rows")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    table: str
    fields: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.RepeatedScalarFieldContainer[str]
    start: int
    num_rows: int
    def __init__(self, table: _Optional[str] = ..., fields: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Iterable[str]] = ..., start: _Optional[int] = ..., num_rows: _Optional[int] = ...) -> None: ...

class Scanned(_message.Message):
    __slots__ = ("rows", "next")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    rows: LookedUp
    next: int
    def __init__(self, rows: _Optional[_Union[LookedUp, _Mapping]] = ..., next: _Optional[int] = ...) -> None: ...

class Describe(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("tables", "clocks", "sequence")
    class ClocksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TABLES_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[TableDescription]
    clocks: _containers.ScalarMap[str, int]
    sequence: int
    def __init__(self, tables: _Optional[_Iterable[_Union[TableDescription, _Mapping]]] = ..., clocks: _Optional[_Mapping[str, int]] = ..., sequence: _Optional[int] = ...) -> None: ...

class TableDescription(_message.Message):
    __slots__ = ("spec_json", "num_rows", "num_bytes", "counters", "rows_written")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RowsWrittenEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    ROWS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    num_rows: int
    num_bytes: int
    counters: _containers.ScalarMap[str, int]
    rows_written: _containers.ScalarMap[str, int]
    def __init__(self, spec_json: _Optional[str] = ..., num_rows: _Optional[int] = ..., num_bytes: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ..., rows_written: _Optional[_Mapping[str, int]] = ...) -> None: ...

class TakeSnapshot(_message.Message):
    __slots__ = ("label", "uuid", "is_frozen")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    IS_FROZEN_FIELD_NUMBER: _ClassVar[int]
    label: str
    uuid: str
    is_frozen: bool
    def __init__(self, label: _Optional[str] = ..., uuid: _Optional[str] = ..., is_frozen: _Optional[bool] = ...) -> None: ...

class Freeze(_message.Message):
    __slots__ = ("uuid", "ends")
    UUID_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    ends: bool
    def __init__(self, uuid: _Optional[str] = ..., ends: _Optional[bool] = ...) -> None: ...

class ListSnapshots(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Restore(_message.Message):
    __slots__ = ("name", "snapshot")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    name: str
    snapshot: Snapshot
    def __init__(self, name: _Optional[str] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ...) -> None: ...

class PinSnapshots(_message.Message):
    __slots__ = ("owner", "uuids")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    UUIDS_FIELD_NUMBER: _ClassVar[int]
    owner: str
    uuids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, owner: _Optional[str] = ..., uuids: _Optional[_Iterable[str]] = ...) -> None: ...

class VerifySnapshot(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("bank_id", "label", "uuid", "created_at", "num_rows")
    BANK_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    bank_id: str
    label: str
    uuid: str
    created_at: float
    num_rows: int
    def __init__(self, bank_id: _Optional[str] = ..., label: _Optional[str] = ..., uuid: _Optional[str] = ..., created_at: _Optional[float] = ..., num_rows: _Optional[int] = ...) -> None: ...

class Snapshots(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...
