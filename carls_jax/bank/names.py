"""What a table remembers besides rows: names by number, and counts."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from carls_jax.errors import BankOverloadedError


class Names:
    """Numbers the names of sources or clocks, in order of first use.

    One thread at a time may add. Others may read meanwhile, since a name once given keeps its
    number.
    """

    def __init__(self, first: str, *, limit: int) -> None:
        self._limit = limit
        self._names = [first]
        self._numbers = {first: 0}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._names))

    def check_room(self, name: str, *, kind: str) -> None:
        """Raises BankOverloadedError if the name is new and there is no number left."""
        if name not in self._numbers and len(self._names) >= self._limit:
            raise BankOverloadedError(
                f"{kind}={name!r} is one {kind} too many: a table knows {self._limit}; use one of "
                f"them again, such as {self._names[-1]!r}"
            )

    def add(self, name: str) -> int:
        """Returns the number of a name, giving it one if it is new."""
        if name not in self._numbers:
            self._names.append(name)
            self._numbers[name] = len(self._names) - 1
        return self._numbers[name]

    def find(self, name: str) -> int | None:
        """Returns the number of a name, or None if it has none."""
        return self._numbers.get(name)

    def replace(self, names: Sequence[str]) -> None:
        """Takes over the names of a snapshot."""
        self._names = list(names)
        self._numbers = {name: number for number, name in enumerate(names)}


class Counts:
    """Counts events by name. May be used from several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._elsewhere: list[Callable[[], Mapping[str, int]]] = []

    def add(self, numbers: Mapping[str, int]) -> None:
        """Adds to several counts."""
        with self._lock:
            for name, number in numbers.items():
                self._counts[name] += number

    def read(self) -> dict[str, int]:
        """Returns all counts."""
        with self._lock:
            counts = self._counts.copy()
            for read in self._elsewhere:
                counts.update(read())
            return dict(counts)

    @contextmanager
    def including(self, read: Callable[[], Mapping[str, int]]) -> Iterator[None]:
        """Includes what is counted elsewhere, and keeps it when the block ends."""
        with self._lock:
            self._elsewhere.append(read)
        try:
            yield
        finally:
            with self._lock:
                self._elsewhere.remove(read)
                self._counts.update(read())
