"""`ChangeNumbers`: the numbers that a client gives its changes, so that one may be sent again."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from carls_jax.bank.client_windows import MAX_NUMBERS


class ChangeNumbers:
    """Numbers changes from 1, under a name that no other client has.

    A change that is under way holds up those that would be so much higher that the bank could not
    tell any more whether it was applied. May be used from several threads at once.

    Attributes:
      client: The name, 32 hexadecimal digits.
    """

    def __init__(self) -> None:
        self.client = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._last = 0
        self._under_way: set[int] = set()

    @contextmanager
    def next(self) -> Iterator[int]:
        """Gives the next number, to a change that is under way until the block ends."""
        with self._changed:
            self._changed.wait_for(self._is_near)
            self._last += 1
            number = self._last
            self._under_way.add(number)
        try:
            yield number
        finally:
            with self._changed:
                self._under_way.remove(number)
                self._changed.notify_all()

    def _is_near(self) -> bool:
        lowest = min(self._under_way, default=self._last + 1)
        return self._last + 1 - lowest < MAX_NUMBERS
