"""Requests that a bank must refuse: each is right but for one thing.

They are for the tables of `stored_rows.py`, which have rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.frames import Frame, encode
from carls_jax.bank.interface import PROTOCOL_VERSION
from tests.bank.stored_rows import EMBEDDINGS, VOTES
from tests.integration.hostile_values import (
    bad_dtypes,
    bad_shapes,
    hostile_json,
    json_values,
    names,
    no_names,
    not_finite,
    paths,
    uuids,
)

Arrays = list[tuple[str, str, list[int], bytes]]  # name, dtype, shape and bytes
Draw = st.DrawFn


def described(arrays: dict[str, Any]) -> Arrays:
    return [
        (name, str(array.dtype), list(array.shape), array.tobytes())
        for name, array in ((name, np.asarray(one)) for name, one in arrays.items())
    ]


def request(arrays: Arrays = (), **call: Any) -> pb.Request:  # type: ignore[assignment]
    headers = [pb.ArrayHeader(name=one[0], dtype=one[1], shape=one[2]) for one in arrays]
    return pb.Request(protocol_version=PROTOCOL_VERSION, arrays=headers, **call)


def framed(asked: pb.Request, arrays: Arrays = ()) -> bytes:  # type: ignore[assignment]
    return encode(Frame(asked, [memoryview(one[3]) for one in arrays]))


def author(**more: Any) -> pb.Author:
    return pb.Author(**{"step": 5, "clock": "main", "updated_at": 1.0, "source": "ann", **more})


def update(
    arrays: dict[str, Any] | None = None, *, by: pb.Author | None = None, **more: Any
) -> tuple[pb.Request, Arrays]:
    """Returns what would overwrite three rows."""
    given = {"keys": np.arange(3), "value/dense": np.ones((3, 3), np.float32)}
    sent = described(given | (arrays or {}))
    kind = {"update": pb.Update()} if not more.keys() & {"push", "delete", "evict", "flush"} else {}
    change = pb.Change(**{"table": EMBEDDINGS.name, "author": by or author(), **kind, **more})
    return request(sent, change=change), sent


def keys_alone(**more: Any) -> tuple[pb.Request, Arrays]:
    sent = described({"keys": np.arange(3)})
    change = pb.Change(**{"table": EMBEDDINGS.name, "author": author(), **more})
    return request(sent, change=change), sent


def lookup(**more: Any) -> pb.Lookup:
    return pb.Lookup(**{"table": EMBEDDINGS.name, "fields": ["dense"], "clock": "main", **more})


def reading(**call: Any) -> tuple[pb.Request, Arrays]:
    sent = described({"keys": np.arange(3)})
    return request(sent, **call), sent


def _another_version(draw: Draw) -> Any:
    asked, sent = update()
    asked.protocol_version = draw(st.sampled_from([0, PROTOCOL_VERSION + 1, 2**32 - 1]))
    return asked, sent


def _another_bank(draw: Draw) -> Any:
    asked, sent = update()
    asked.bank_id = draw(names.filter(bool))
    return asked, sent


def _no_call(draw: Draw) -> Any:
    return request(), []


def _no_kind(draw: Draw) -> Any:
    asked, sent = update()
    asked.change.ClearField("update")
    return asked, sent


def _no_table(draw: Draw) -> Any:
    kind = draw(st.sampled_from(["update", "push", "delete", "evict", "flush", "create_rows"]))
    return keys_alone(table=draw(names), **{kind: _kinds()[kind]})


def _kinds() -> dict[str, Any]:
    return {
        "update": pb.Update(),
        "push": pb.Push(combine="sum"),
        "delete": pb.Delete(),
        "evict": pb.Evict(reason="limit"),
        "flush": pb.Flush(fields=["waiting"]),
        "create_rows": pb.CreateRows(),
    }


def _bad_header(draw: Draw) -> Any:
    asked, sent = update()
    header = asked.arrays[draw(st.integers(0, 1))]
    if draw(st.booleans()):
        header.dtype = draw(bad_dtypes)
    else:
        shape = draw(bad_shapes)
        header.shape[:] = shape
    return asked, sent


def _bytes_do_not_fit(draw: Draw) -> Any:
    asked, sent = update()
    name, dtype, shape, data = sent[1]
    cut = draw(st.integers(-len(data), 40).filter(bool))
    sent[1] = (name, dtype, shape, data + b"x" * cut if cut > 0 else data[:cut])
    return asked, sent


def _not_finite(draw: Draw) -> Any:
    field = draw(st.sampled_from(["dense", "waiting"]))
    values = np.ones((3, {"dense": 3, "waiting": 2}[field]), np.float32)
    values[draw(st.integers(0, 2)), draw(st.integers(0, 1))] = draw(not_finite)
    push = {"push": pb.Push(combine="mean", create=draw(st.booleans()))}
    sent = described({"keys": np.arange(3), f"value/{field}": values})
    change = {"update": pb.Update()} if draw(st.booleans()) else push
    whole = pb.Change(table=EMBEDDINGS.name, author=author(), **change)
    return request(sent, change=whole), sent


def _wrong_width(draw: Draw) -> Any:
    shape = draw(st.tuples(st.integers(0, 5), st.integers(0, 9)).filter(lambda one: one != (3, 3)))
    more = {"push": pb.Push(combine="sum", create=True)} if draw(st.booleans()) else {}
    return update({"value/dense": np.ones(shape, np.float32)}, **more)


def _wrong_keys(draw: Draw) -> Any:
    keys = draw(
        st.sampled_from(
            [np.empty(0, np.int64), np.zeros((3, 1), np.int64), np.arange(3.0), np.ones(3, "i4"),
             np.int64(3), np.ones(3, bool), np.arange(3, dtype="u4"), np.empty((0, 3), np.int64)]
        )
    )  # fmt: skip
    if draw(st.booleans()):
        return update({"keys": keys})
    sent = described({"keys": keys})
    return request(sent, lookup=lookup(create=True)), sent


def _wrong_dtype(draw: Draw) -> Any:
    dtype = draw(st.sampled_from(["float64", "int32", "bool", "uint8", "int64"]))
    return update({"value/dense": np.ones((3, 3), dtype)})


def _wrong_array(draw: Draw) -> Any:
    name = draw(st.sampled_from(["value/nothing", "value/", "value", "dense", "", "value/dense/x"]))
    return update({name: np.ones((3, 3), np.float32)})


def _repeated_array(draw: Draw) -> Any:
    asked, sent = update()
    sent = [*sent, sent[draw(st.integers(0, 1))]]
    return request(sent, change=asked.change), sent


def _wrong_author(draw: Draw) -> Any:
    more = draw(
        st.sampled_from(
            [{"step": -2}, {"step": -(2**63)}, {"updated_at": np.nan}, {"updated_at": np.inf},
             {"updated_at": -1.0}, {"clock": ""}]
        )
        | st.fixed_dictionaries({"clock": no_names})
        | st.fixed_dictionaries({"source": no_names.filter(bool)})
    )  # fmt: skip
    kind = draw(st.sampled_from(list(_kinds())))
    asked, sent = keys_alone(**{kind: _kinds()[kind]}, author=author(**more))
    if kind in ("update", "push"):
        return update(by=author(**more), **{kind: _kinds()[kind]})
    return asked, sent


def _no_author(draw: Draw) -> Any:
    sent = described({"keys": np.arange(3), "value/vote": np.ones(3, np.int8)})
    change = pb.Change(table=VOTES.name, author=author(source=""), update=pb.Update())
    return request(sent, change=change), sent


def _forged_client(draw: Draw) -> Any:
    client, number = draw(
        st.tuples(names.filter(bool) | uuids.filter(bool), st.integers(0, 2**64 - 1))
        | st.tuples(st.just("a" * 32), st.just(0))
        | st.tuples(st.just(""), st.integers(1, 2**64 - 1))
    )
    asked, sent = update()
    asked.change.client, asked.change.number = client, number
    return asked, sent


def _wrong_blend(draw: Draw) -> Any:
    blend = draw(st.sampled_from([np.nan, np.inf, -np.inf, -0.1, 1.1, 1e300, -5e-324]))
    return update(update=pb.Update(blend=blend))


def _wrong_names_in_kind(draw: Draw) -> Any:
    name = draw(names)
    kinds = {
        "update": pb.Update(if_newer_fields=[name]),
        "push": pb.Push(combine=name),
        "evict": pb.Evict(reason=name),
        "flush": pb.Flush(fields=[draw(st.sampled_from([name, "dense"]))]),
    }
    kind = draw(st.sampled_from(list(kinds)))
    return (update if kind in ("update", "push") else keys_alone)(**{kind: kinds[kind]})


def _push_without_optimizer(draw: Draw) -> Any:
    sent = described({"keys": np.arange(3), "value/vote": np.ones(3, np.int8)})
    change = pb.Change(table=VOTES.name, author=author(), push=pb.Push(combine="sum", create=True))
    return request(sent, change=change), sent


def _spec_with(draw: Draw, name: str) -> str:
    """Returns a spec in which one value is another."""
    spec = {**EMBEDDINGS.to_dict(), "name": name}
    spec["fields"] = {one: dict(field) for one, field in spec["fields"].items()}
    place = draw(st.sampled_from([spec, *spec["fields"].values()]))
    place[draw(st.sampled_from(sorted(place)))] = draw(json_values)
    return json.dumps(spec)


def _hostile_spec(draw: Draw) -> Any:
    kind = draw(st.sampled_from([pb.CreateTable, pb.Alter]))
    # Of another name than it says: whatever the spec is, it is refused.
    text = draw(hostile_json) if draw(st.booleans()) else _spec_with(draw, "another")
    name = "create_table" if kind is pb.CreateTable else "alter"
    change = pb.Change(table=EMBEDDINGS.name, author=author(), **{name: kind(spec_json=text)})
    return request(change=change), []


def _bad_lookup(draw: Draw) -> Any:
    more = draw(
        st.sampled_from(
            [{"fields": []}, {"fields": ["nothing"]}, {"metadata": ["nothing"]}, {"table": "x"},
             {"fields": ["dense"] * 257}, {"sources": ["x"] * 5000}, {"metadata": ["step"] * 6},
             {"clock": "x" * 3000}, {"fields": ["dense", "\0"]}]
        )
        | st.fixed_dictionaries({"table": names})
        | st.fixed_dictionaries({"fields": st.lists(names, max_size=3)})
    )  # fmt: skip
    return reading(lookup=lookup(create=draw(st.booleans()), **more))


def _bad_lookup_arrays(draw: Draw) -> Any:
    sent = described({"keys": np.arange(3), draw(names): np.arange(3)})
    return request(sent, lookup=lookup(create=True)), sent


def _created_by_nobody(draw: Draw) -> Any:
    sent = described({"keys": np.array([5555])})
    reader = pb.Author(source=draw(no_names.filter(bool)), clock="main")
    return request(sent, lookup=lookup(create=True, reader=reader)), sent


def _bad_history(draw: Draw) -> Any:
    more = draw(st.sampled_from([{"field": "dense"}, {"field": ""}, {"table": "x"}]))
    return reading(history=pb.History(**{"table": EMBEDDINGS.name, "field": "small", **more}))


def _bad_scan(draw: Draw) -> Any:
    more = draw(
        st.sampled_from(
            [{"num_rows": 0}, {"num_rows": 2**64 - 1}, {"num_rows": (1 << 20) + 1}, {"table": "x"},
             {"fields": []}, {"fields": ["x"]}, {"metadata": ["x"]}]
        )
    )  # fmt: skip
    start = draw(st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1]))
    call = {"table": EMBEDDINGS.name, "fields": ["dense"], "num_rows": 9, "start": start, **more}
    return request(scan=pb.Scan(**call)), []


def _bad_follow(draw: Draw) -> Any:
    ids = pb.Lookup(table="labels", fields=["label"], clock="main")
    links = draw(
        st.sampled_from(
            [[], [ids] * 17, [lookup(), ids], [ids, lookup(fields=["nothing"])], [ids] * 4000,
             [pb.Lookup(table="labels", fields=["label", "label"]), ids], [pb.Lookup()],
             [ids, lookup(table="nothing", create=True)], [ids, lookup(metadata=["x"])]]
        )
    )  # fmt: skip
    return reading(follow=pb.Follow(links=links))


def _bad_held(draw: Draw) -> Any:
    held = draw(st.sampled_from([np.zeros((2, 2), np.int64), np.arange(3.0), np.ones(3, bool)]))
    sent = described({"keys": np.arange(3), "held": held})
    return request(sent, follow=pb.Follow(links=[lookup(create=True)])), sent


def _bad_snapshot(draw: Draw) -> Any:
    path, uuid = draw(paths), draw(uuids.filter(bool))
    calls = [
        {"take_snapshot": pb.TakeSnapshot(label=path)},
        {"take_snapshot": pb.TakeSnapshot(label="fine", uuid=uuid)},
        {"take_snapshot": pb.TakeSnapshot(label="fine", uuid="1" * 32, is_frozen=True)},
        {"take_snapshot": pb.TakeSnapshot(label=draw(st.sampled_from(["automatic", "restored"])))},
        {"restore": pb.Restore(name=path)},
        {"restore": pb.Restore()},
        {"restore": pb.Restore(snapshot=pb.Snapshot(bank_id="b" * 32, uuid=uuid, label="full"))},
        {"restore": pb.Restore(snapshot=pb.Snapshot(bank_id=path, uuid="0" * 32))},
        {"verify_snapshot": pb.VerifySnapshot(name=path)},
        {"freeze": pb.Freeze(uuid=draw(uuids), ends=draw(st.booleans()))},
        {"pin_snapshots": pb.PinSnapshots(owner="me", uuids=[path])},
        {"pin_snapshots": pb.PinSnapshots(owner=draw(st.sampled_from(["", "\0", "x" * 1025])))},
    ]
    return request(**draw(st.sampled_from(calls))), []


def _too_long(draw: Draw) -> Any:
    asked, sent = update()
    text = draw(st.sampled_from(["x", "é", "\U0001f600", "/"])) * draw(st.integers(2049, 9999))
    setattr(*draw(st.sampled_from([(asked, "bank_id"), (asked.change, "table")])), text)
    return asked, sent


MALFORMED: Sequence[Callable[[Draw], Any]] = [
    one for name, one in list(globals().items())
    if name.startswith("_") and name not in ("_kinds", "_spec_with") and callable(one)
    and getattr(one, "__module__", "") == __name__
]  # fmt: skip


@st.composite
def malformed(draw: Draw) -> tuple[str, list[bytes], str]:
    """Draws a request: what is wrong with it, its frames, and the method that it is for."""
    make = draw(st.sampled_from(MALFORMED))
    asked, sent = make(draw)
    whole = framed(asked, sent)
    if draw(st.integers(0, 3)):
        return make.__name__, [whole], "call"
    return make.__name__, cut(draw, asked, b"".join(one[3] for one in sent)), "stream"


def cut(draw: Draw, asked: pb.Request, data: bytes) -> list[bytes]:
    """Cuts a request into the frames of a stream, some of them empty."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    messages = [asked, *[pb.Request()] * (len(parts) - 1)]
    return [
        encode(Frame(one, [memoryview(part)])) for one, part in zip(messages, parts, strict=True)
    ]
