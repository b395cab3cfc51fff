"""A bank that crashed is, when it is opened again, the one that the surviving changes make.

Histories are random, and the journal is cut off after any of its bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import local
from carls_jax.bank.changes import Change
from carls_jax.bank.journal_segments import segment_files
from carls_jax.bank.local import LocalBank
from carls_jax.bank.shard import Shard
from carls_jax.errors import BankFullError, SpecMismatchError
from tests.properties.test_histories import FIRST, Kept, any_change, kept, read_back, state_of

REFUSED = (BankFullError, SpecMismatchError)
CLIENTS = ("a" * 32, "b" * 32)


class Recording(Shard):
    """Keeps what it gives a number, and how long the journal is then."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: list[Kept] = []
        self.ends: list[tuple[Path, int]] = []  # of each change: the last segment and its length
        self.directory = Path()

    def _accept(self, change: Change) -> int:
        sequence = super()._accept(change)
        self.accepted.append(kept(change))
        last = segment_files(self.directory)[-1]
        self.ends.append((last.path, last.num_bytes))
        assert len(self.accepted) == sequence
        return sequence


@dataclass(frozen=True)
class Act:
    """Is a change, perhaps of a client, and perhaps made again at once; or a lookup, or a snapshot.

    A lookup creates rows, and flushes gathered gradients.
    """

    change: Change
    client: int = -1
    num_tries: int = 1
    is_lookup: bool = False
    is_snapshot: bool = False


@st.composite
def any_act(draw: st.DrawFn) -> Act:
    kind = draw(st.sampled_from(["change"] * 6 + ["lookup", "snapshot"]))
    return Act(
        draw(any_change()),
        client=draw(st.integers(-1, 1)),
        num_tries=draw(st.sampled_from([1, 1, 2])),
        is_lookup=kind == "lookup",
        is_snapshot=kind == "snapshot",
    )


acts = st.lists(any_act(), min_size=1, max_size=20)


@contextmanager
def opened(root: Path) -> Iterator[LocalBank]:
    """Opens a bank that makes no changes by itself: when it would depends on the clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local.Upkeep, "wake", lambda _: None)
        with LocalBank(root) as bank:
            yield bank


@contextmanager
def recorded(root: Path) -> Iterator[tuple[LocalBank, Recording]]:
    """Opens a new bank whose changes are recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "Shard", Recording)
        with opened(root) as bank:
            shard = bank._open()
            assert isinstance(shard, Recording)
            shard.directory = root / "journal"
            for change in FIRST:
                bank.apply(change)
            yield bank, shard


def perform(bank: LocalBank, history: list[Act]) -> None:
    numbers = dict.fromkeys(CLIENTS, 0)
    for act in history:
        change = read_back(kept(act.change))
        if act.is_snapshot:
            bank.snapshot("s")
        elif act.is_lookup:
            look_up(bank, change)
        else:
            if act.client >= 0:
                client = CLIENTS[act.client]
                numbers[client] += 1
                change.header.client, change.header.number = client, numbers[client]
            for _ in range(act.num_tries):
                try:
                    bank.apply(change)
                except REFUSED:
                    break


def look_up(bank: LocalBank, change: Change) -> None:
    table = change.header.table or "plain"
    request = pb.Lookup(table=table, fields=["w", "l"], create=True)
    request.reader.source = "ann"
    if table == "said":
        request.sources.append("ann")
    try:
        bank.lookup(request, change.keys if change.keys.size else np.array([1]))
    except REFUSED:
        return


def survivors(shard: Recording, cut: int) -> int:
    """Returns how many changes are left of the journal, or in the snapshot that it goes on from."""
    last = segment_files(shard.directory)[-1]
    return sum(path != last.path or end <= cut for path, end in shard.ends)


def replayed(accepted: list[Kept]) -> Shard:
    shard = Shard()
    for sequence, one in enumerate(accepted, 1):
        shard.replay(read_back(one), sequence)
    return shard


@settings(max_examples=40, deadline=None)
@given(acts, st.data())
def test_what_survives_a_crash_is_what_the_surviving_changes_make(
    history: list[Act], data: Any
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root, copy = Path(directory, "root"), Path(directory, "copy")
        with recorded(root) as (bank, shard):
            perform(bank, history)
            whole = state_of(shard)
            last = segment_files(root / "journal")[-1]
            cut = data.draw(st.integers(0, last.num_bytes), label="cut")
            num_left = survivors(shard, cut)
            shutil.copytree(root, copy)
        with (copy / "journal" / last.path.name).open("r+b") as file:
            file.truncate(cut)
        for _ in range(2):  # and it is recovered again alike
            with opened(copy) as recovered:
                assert state_of(recovered._open()) == state_of(replayed(shard.accepted[:num_left]))
        if cut == last.num_bytes:
            assert num_left == len(shard.accepted)
            assert state_of(replayed(shard.accepted)) == whole


@settings(max_examples=20, deadline=None)
@given(acts, acts)
def test_a_recovered_bank_goes_on_as_if_nothing_had_been(first: list[Act], more: list[Act]) -> None:
    """What is answered later, and to changes that are made again, is what would have been."""
    with tempfile.TemporaryDirectory() as directory:
        root, copy = Path(directory, "root"), Path(directory, "copy")
        with recorded(root) as (bank, _):
            perform(bank, first)
            shutil.copytree(root, copy)
            answers = [answered(bank, act) for act in more]
            state = state_of(bank._open())
        with opened(copy) as recovered:
            assert [answered(recovered, act) for act in more] == answers
            assert state_of(recovered._open()) == state


def answered(bank: LocalBank, act: Act) -> str:
    """Makes a change whose number an earlier one may have had."""
    change = read_back(kept(act.change))
    change.header.client, change.header.number = CLIENTS[act.client > 0], act.num_tries
    try:
        return str(bank.apply(change))
    except REFUSED as error:
        return repr(error)
