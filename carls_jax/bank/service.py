"""What a server answers, whatever carries the request: gRPC or shared memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import messages
from carls_jax.bank.changes import NO_KEYS, Keys
from carls_jax.bank.interface import PROTOCOL_VERSION, Bank
from carls_jax.bank.values import check_keys
from carls_jax.bank.wire import Arrays
from carls_jax.errors import (
    BankClosedError,
    BankIdentityError,
    BankUnavailableError,
    InvalidInputError,
    ProtocolMismatchError,
)

Answer: TypeAlias = tuple[pb.Reply, Arrays]

_UUID = re.compile(r"[0-9a-f]{32}")


def answer(bank: Bank, request: pb.Request, arrays: Arrays) -> Answer:
    """Asks a bank what a request wants of it.

    May be called from several threads at once. The arrays must not change meanwhile.

    Returns:
      The reply, which tells the bank's incarnation, and its arrays; their headers are left to the
      transport.

    Raises:
      ProtocolMismatchError: The client speaks another protocol version.
      BankIdentityError: The client means another bank.
      BankUnavailableError: The bank was closed, since its server stops.
      CarlsError: Whatever the bank raises; nothing was changed.
    """
    _check_protocol(request.protocol_version)
    _check_identity(bank, request.bank_id)
    call = request.WhichOneof("call")
    if call is None:
        raise InvalidInputError(f"the request holds no call: allowed are {', '.join(_ANSWERS)}")
    try:
        reply, answered = _ANSWERS[call](bank, getattr(request, call), arrays)
        reply.incarnation = bank.identity.incarnation
        reply.last_alter = bank.last_alter
    except BankClosedError as error:
        # "Closed" would tell the client that it closed its own bank object.
        raise BankUnavailableError("the bank's server is stopping") from error
    return reply, answered


def _check_protocol(version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise ProtocolMismatchError(
            f"the client speaks protocol version {version}, this server {PROTOCOL_VERSION}: "
            "install the same carls-jax on both sides"
        )


def _check_identity(bank: Bank, wanted: str) -> None:
    if wanted and wanted != bank.identity.bank_id:
        raise BankIdentityError(
            f"bank {wanted} was meant, and bank {bank.identity.bank_id} answers: give another "
            "address, or connect again if this bank is the right one now"
        )


def _keys(arrays: Arrays) -> Keys:
    if list(arrays) != ["keys"]:
        raise InvalidInputError(f"arrays {list(arrays)}: a reading request has 'keys' alone")
    return arrays["keys"]


def _hello(bank: Bank, call: pb.Hello, arrays: Arrays) -> Answer:
    return pb.Reply(identity=messages.pack_identity(bank.identity)), {}


def _change(bank: Bank, call: pb.Change, arrays: Arrays) -> Answer:
    if call.WhichOneof("kind") is None:
        raise InvalidInputError("the change is of no kind that this server knows")
    applied, answered = messages.pack_applied(bank.apply(messages.unpack_change(call, arrays)))
    return pb.Reply(applied=applied), answered


def _lookup(bank: Bank, call: pb.Lookup, arrays: Arrays) -> Answer:
    rows, answered = messages.pack_rows(bank.lookup(call, _keys(arrays)))
    return pb.Reply(looked_up=rows), answered


def _follow(bank: Bank, call: pb.Follow, arrays: Arrays) -> Answer:
    asked = dict(arrays)
    held = check_keys(asked.pop("held")) if "held" in asked else NO_KEYS
    followed, answered = messages.pack_followed(bank.follow(call, _keys(asked), held))
    return pb.Reply(followed=followed), answered


def _history(bank: Bank, call: pb.History, arrays: Arrays) -> Answer:
    writes, answered = messages.pack_history(bank.history(call, _keys(arrays)))
    return pb.Reply(history=writes), answered


def _scan(bank: Bank, call: pb.Scan, arrays: Arrays) -> Answer:
    rows, following = bank.scan(call)
    message, answered = messages.pack_rows(rows)
    return pb.Reply(scanned=pb.Scanned(rows=message, next=following)), {
        "keys": rows.keys,
        **answered,
    }


def _describe(bank: Bank, call: pb.Describe, arrays: Arrays) -> Answer:
    return pb.Reply(description=messages.pack_stats(bank.stats())), {}


def _take_snapshot(bank: Bank, call: pb.TakeSnapshot, arrays: Arrays) -> Answer:
    if call.uuid and not _UUID.fullmatch(call.uuid):
        raise InvalidInputError(f"uuid={call.uuid!r}: allowed are 32 hexadecimal digits")
    snapshot = bank.snapshot(call.label, uuid=call.uuid or None, is_frozen=call.is_frozen)
    return pb.Reply(snapshot=messages.pack_snapshot(snapshot)), {}


def _list_snapshots(bank: Bank, call: pb.ListSnapshots, arrays: Arrays) -> Answer:
    snapshots = [messages.pack_snapshot(one) for one in bank.snapshots()]
    return pb.Reply(snapshots=pb.Snapshots(snapshots=snapshots)), {}


def _restore(bank: Bank, call: pb.Restore, arrays: Arrays) -> Answer:
    is_identity = call.WhichOneof("wanted") == "snapshot"
    wanted = messages.unpack_snapshot(call.snapshot) if is_identity else call.name
    return pb.Reply(snapshot=messages.pack_snapshot(bank.restore(wanted))), {}


def _freeze(bank: Bank, call: pb.Freeze, arrays: Arrays) -> Answer:
    if not _UUID.fullmatch(call.uuid):
        raise InvalidInputError(f"uuid={call.uuid!r}: allowed are 32 hexadecimal digits")
    (bank.thaw if call.ends else bank.freeze)(call.uuid)
    return pb.Reply(snapshots=pb.Snapshots()), {}


def _pin_snapshots(bank: Bank, call: pb.PinSnapshots, arrays: Arrays) -> Answer:
    bank.pin(call.owner, list(call.uuids))
    return pb.Reply(snapshots=pb.Snapshots()), {}


def _verify_snapshot(bank: Bank, call: pb.VerifySnapshot, arrays: Arrays) -> Answer:
    return pb.Reply(snapshot=messages.pack_snapshot(bank.verify(call.name))), {}


_ANSWERS: dict[str, Callable[[Bank, Any, Arrays], Answer]] = {
    "hello": _hello,
    "change": _change,
    "lookup": _lookup,
    "follow": _follow,
    "history": _history,
    "scan": _scan,
    "describe": _describe,
    "take_snapshot": _take_snapshot,
    "list_snapshots": _list_snapshots,
    "restore": _restore,
    "freeze": _freeze,
    "pin_snapshots": _pin_snapshots,
    "verify_snapshot": _verify_snapshot,
}
