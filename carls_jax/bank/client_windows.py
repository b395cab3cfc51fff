"""`ClientWindows`: which changes clients have made, so that one that is sent again is answered.

A client numbers its changes from 1 and sends one again with the number that it had. What is kept
follows from the numbered changes and their order alone, so a bank that is recovered or restored
knows what the bank that it goes on from did.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.interface import Applied
from carls_jax.errors import InvalidInputError

# Of a client's numbers, those within so many of its highest are known.
MAX_NUMBERS = 1024
# The client whose last change is the oldest is forgotten first.
MAX_CLIENTS = 4096
# Unknown keys that a client's answers hold together; those of its highest numbers are kept.
MAX_UNKNOWN_KEYS = 1 << 14

_CLIENT = re.compile(r"[0-9a-f]{32}")
# What is kept of an answer besides its unknown keys, in the order in which it is saved. All of it
# follows from the change itself; evictions that made room for it are changes of their own.
_COUNTS = ("sequence", "num_created", "num_deleted", "num_kept")

Saved = Mapping[str, list[list[Any]]]


@dataclass(frozen=True)
class _Answer:
    """Is what a change was answered; `applied` is None while the change is being applied.

    `num_unknown` counts the unknown keys, also where they are kept no more.
    """

    sequence: int
    applied: Applied | None = None
    num_unknown: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the unknown keys are kept."""
        return self.applied is not None and self.applied.unknown_keys.size == self.num_unknown


@dataclass
class _Window:
    """Keeps one client's answers by number; all are above `highest - MAX_NUMBERS`."""

    highest: int = 0
    answers: dict[int, _Answer] = field(default_factory=dict)

    def add(self, number: int, answer: _Answer) -> None:
        """Notes an answer and forgets those that are now below the window."""
        if number - self.highest >= MAX_NUMBERS:
            self.answers.clear()
        else:
            for below in range(self.highest - MAX_NUMBERS + 1, number - MAX_NUMBERS + 1):
                self.answers.pop(below, None)
        self.highest = max(self.highest, number)
        self.answers[number] = answer

    def forget_keys(self) -> None:
        """Forgets unknown keys where higher numbers and it have too many, whatever came first."""
        num_keys = 0
        for number in sorted(self.answers, reverse=True):
            answer = self.answers[number]
            num_keys += answer.num_unknown
            if num_keys > MAX_UNKNOWN_KEYS and answer.num_unknown and answer.is_whole:
                assert answer.applied is not None
                fewer = replace(answer.applied, unknown_keys=np.empty(0, np.int64))
                self.answers[number] = replace(answer, applied=fewer)


class ClientWindows:
    """Knows, for each of the last clients, its last changes and what they were answered.

    Not thread-safe, but for what a caller's lock covers.
    """

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}  # in the order of the clients' last changes

    def find(self, change: pb.Change) -> Applied | None:
        """Returns what a change was answered; None: it is new, or has no number.

        Raises:
          InvalidInputError: It has half a number, or one that nobody can tell any more; nothing is
            known of whether it was applied, but where the message says so.
        """
        client, number = change.client, change.number
        if not client and not number:
            return None
        if not _CLIENT.fullmatch(client) or not number:
            raise InvalidInputError(
                f"client={client!r:.80}, number={number}: a client has 32 digits of 0-9 and a-f, "
                "and numbers its changes from 1"
            )
        window = self._windows.get(client)
        if window is None:
            return None
        if number <= window.highest - MAX_NUMBERS:
            raise InvalidInputError(
                f"change {number} of client {client}: the client has made change {window.highest}, "
                f"and the bank knows its last {MAX_NUMBERS} alone, so it cannot tell whether this "
                "one was applied; it was not applied now"
            )
        answer = window.answers.get(number)
        return None if answer is None else _told(client, number, answer)

    def begin(self, change: pb.Change, sequence: int) -> None:
        """Notes that a change has its number in the bank, before it is applied; in their order."""
        if not change.client:
            return
        window = self._windows.pop(change.client, None) or _Window()
        window.add(change.number, _Answer(sequence))
        self._windows[change.client] = window
        if len(self._windows) > MAX_CLIENTS:
            del self._windows[next(iter(self._windows))]

    def end(self, change: pb.Change, applied: Applied) -> None:
        """Notes what a change that has begun did; in any order."""
        window = self._windows.get(change.client)
        answer = window.answers.get(change.number) if window else None
        if window is None or answer is None or answer.sequence != applied.sequence:
            return  # the client was forgotten meanwhile, or made so many more changes
        counts = {name: getattr(applied, name) for name in _COUNTS}
        kept, num_unknown = applied.unknown_keys, applied.unknown_keys.size
        told = Applied(**counts, unknown_keys=kept)
        window.answers[change.number] = _Answer(applied.sequence, told, num_unknown)
        if num_unknown:
            window.forget_keys()

    def copy(self) -> ClientWindows:
        """Returns what stays as it is while this goes on."""
        copied = ClientWindows()
        copied._windows = {
            client: _Window(one.highest, dict(one.answers)) for client, one in self._windows.items()
        }
        return copied

    def save(self) -> dict[str, list[list[Any]]]:
        """Returns everything as plain JSON types; all changes that have begun have ended."""
        return {
            client: [_saved(number, one) for number, one in sorted(window.answers.items())]
            for client, window in self._windows.items()
        }

    @classmethod
    def load(cls, saved: Saved) -> ClientWindows:
        """Undoes `save`."""
        windows = cls()
        for client, answers in saved.items():
            loaded = dict(map(_loaded, answers))
            windows._windows[client] = _Window(max(loaded, default=0), loaded)
        return windows


def _told(client: str, number: int, answer: _Answer) -> Applied:
    if answer.applied is None:
        raise InvalidInputError(
            f"change {number} of client {client} is being applied to another table: number each "
            "change once"
        )
    if not answer.is_whole:
        raise InvalidInputError(
            f"change {number} of client {client} was applied, as change {answer.sequence} of the "
            f"bank, but which {answer.num_unknown} keys were unknown is known no more; it was not "
            "applied again"
        )
    return replace(answer.applied, is_repeated=True)


def _saved(number: int, answer: _Answer) -> list[Any]:
    """Returns `[number, counts..., keys]`, without what is 0 at the end."""
    assert answer.applied is not None, "a change that has not ended was saved"
    saved: list[Any] = [number, *(int(getattr(answer.applied, name)) for name in _COUNTS)]
    if answer.num_unknown:
        keys = answer.applied.unknown_keys.tolist()
        return [*saved, keys if answer.is_whole else answer.num_unknown]
    while not saved[-1]:
        saved.pop()
    return saved


def _loaded(saved: list[Any]) -> tuple[int, _Answer]:
    number, *counts = saved
    keys: list[int] | int = counts.pop() if len(counts) > len(_COUNTS) else []
    kept, num_unknown = (keys, len(keys)) if isinstance(keys, list) else ([], keys)
    told = dict(zip(_COUNTS, counts, strict=False))
    applied = Applied(**told, unknown_keys=np.array(kept, np.int64))
    return number, _Answer(applied.sequence, applied, num_unknown)
