"""`LookAhead`: fetches the knowledge of the next batches while the device computes this one."""

from __future__ import annotations

import base64
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from carls_jax.errors import InvalidInputError
from carls_jax.training.knowledge import Fetched
from carls_jax.training.plan import Batch

_log = logging.getLogger(__name__)


class Fetch(Protocol):
    """Looks up the knowledge of a batch for a step."""

    def __call__(self, batch: Batch, step: int) -> Fetched: ...

    def forget(self) -> None:
        """Lets go of what it keeps for later batches."""


@dataclass(frozen=True)
class Drawn:
    """Holds one step's batch and knowledge, and where the batches are right after it (JSON)."""

    step: int
    batch: Batch
    fetched: Fetched
    position: Any


class InlineExecutor(Executor):
    """Runs each task at once, in the caller's thread; so that what happens when is fixed."""

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Runs a task and returns its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(task(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class LookAhead:
    """Draws batches and fetches their knowledge ahead of the steps, in the steps' order.

    One thread of `executor` draws and fetches, and nobody else uses the batches. With an
    `InlineExecutor` step t + depth is fetched when step t + 1 is asked for: after everything that
    the caller did in step t.

    Args:
      batches: The batches and where they are.
      fetch: Looks up the knowledge of a batch for a step; called in the executor alone.
      executor: Where to fetch; it must run its tasks in order.
      depth: How many steps are held ready, the present one included.
      steps: Numbers of the steps to fetch for.

    Raises:
      InvalidInputError: `depth` is below 1.
    """

    def __init__(
        self,
        batches: ResumableBatches,
        fetch: Fetch,
        *,
        executor: Executor,
        depth: int,
        steps: Iterable[int],
    ) -> None:
        if depth < 1:
            raise InvalidInputError(f"depth={depth}: allowed is 1 and more")
        self._batches = batches
        self._fetch = fetch
        self._executor = executor
        self._depth = depth
        self._steps = iter(steps)
        self._waiting: deque[Future[Drawn | None]] = deque()

    def __iter__(self) -> Iterator[Drawn]:
        while True:
            for step in itertools.islice(self._steps, self._depth - len(self._waiting)):
                self._waiting.append(self._executor.submit(self._draw, step))
            drawn = self._waiting.popleft().result() if self._waiting else None
            if drawn is None:
                return
            yield drawn

    def refetch(self) -> None:
        """Looks up again what was fetched ahead; the batches stay.

        After a checkpoint a resumed run has nothing fetched, so a run that goes on must not use
        what it fetched before either.
        """
        self._executor.submit(self._fetch.forget)
        self._waiting = deque(
            self._executor.submit(self._fetch_again, future) for future in self._waiting
        )

    def _draw(self, step: int) -> Drawn | None:
        try:
            batch = next(self._batches)
        except StopIteration:
            return None
        position = self._batches.position
        return Drawn(step, batch, self._fetch(batch, step), position)

    def _fetch_again(self, before: Future[Drawn | None]) -> Drawn | None:
        drawn = before.result()  # it is done, since tasks run in order
        if drawn is None:
            return None
        return replace(drawn, fetched=self._fetch(drawn.batch, drawn.step))


@runtime_checkable
class _HasState(Protocol):
    """Is an iterator that can tell where it is, and go there."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class ResumableBatches:
    """Iterates over batches, from where an earlier run was.

    An iterator with `get_state()` and `set_state(state)`, such as grain's or that of
    `carls_jax.data.Batches`, goes there at once; from others the batches are drawn again.

    Args:
      batches: Any iterable of dicts.
      position: Where to begin, as `position` told it. None: at the start.

    Raises:
      InvalidInputError: The batches end before that.
    """

    def __init__(self, batches: Iterable[Batch], position: Any = None) -> None:
        self._iterator = iter(batches)
        self._num_drawn = 0
        if position is None:
            return
        if isinstance(self._iterator, _HasState):
            self._iterator.set_state(_from_json(position))
            return
        _log.info("drawing %d batches again: the iterator has no set_state()", position)
        for _ in itertools.islice(self, position):
            pass
        if self._num_drawn < position:
            raise InvalidInputError(
                f"batches: they end after {self._num_drawn}, but the run to resume had used "
                f"{position}; give the same ones"
            )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._num_drawn += 1
        return batch

    @property
    def position(self) -> Any:
        """Where the batches are, as JSON: the iterator's own state, or how many were drawn."""
        if isinstance(self._iterator, _HasState):
            return _to_json(self._iterator.get_state())
        return self._num_drawn


def _to_json(state: Any) -> Any:
    # Some of grain's iterators tell their state in bytes.
    return {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else state


def _from_json(state: Any) -> Any:
    is_bytes = isinstance(state, dict) and state.keys() == {"base64"}
    return base64.b64decode(state["base64"]) if is_bytes else state
