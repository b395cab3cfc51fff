"""Reading checkpoints while a trainer writes and deletes them."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import v1

from carls_jax.checkpoints.about import STATE_ITEM, About, read_about
from carls_jax.checkpoints.leaves import LeafPath, named_leaves, nested
from carls_jax.errors import CheckpointNotFoundError, InvalidInputError

# A checkpoint that cannot be read and yet does not vanish within this time is damaged.
_DELETION_TIMEOUT_S = 5.0
_NAME_FORMAT = ocp.path.step.standard_name_format()

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class HostCheckpoint:
    """Holds what was read of one checkpoint, in host memory.

    Attributes:
      step: The step that it was saved at.
      variables: Nested dict of NumPy arrays; random keys are their uint32 data.
      bank: The identity of the bank snapshot taken with it, or None.
      extra: The trainer's small JSON, or None.
      bytes_read: Bytes of the arrays that were read.
    """

    step: int
    variables: dict[str, Any]
    bank: dict[str, Any] | None
    extra: dict[str, Any] | None
    bytes_read: int


class CheckpointWatcher:
    """Watches a trainer's checkpoint directory, and never writes in it.

    The directory may not exist yet. A step counts once it is finished: a save that was killed
    leaves a temporary directory, which is not seen; on object stores the commit marker decides.
    A trainer keeps only its newest checkpoints, so that any step may vanish at any time, even
    while it is read. Use one watcher per thread.

    Args:
      directory: Where a `Checkpointer` writes; a local path or `gs://...`.
      poll_s: Seconds between two looks at the directory while waiting. A look at a local
        directory takes 0.05 ms.
    """

    def __init__(self, directory: str | os.PathLike[str], *, poll_s: float = 0.02) -> None:
        self.directory = absolute_path(directory)
        self.poll_s = poll_s
        self._finished: set[int] = set()

    def steps(self) -> tuple[int, ...]:
        """Returns the finished steps, oldest first; none if the directory does not exist."""
        named = {int(name) for name in self._names() if name.isdecimal()}
        # Whether a step is finished is asked only once: it costs ten times the listing.
        self._finished &= named
        self._finished |= {step for step in named - self._finished if self._is_finished(step)}
        return tuple(sorted(self._finished))

    def latest_step(self) -> int | None:
        """Returns the newest finished step, or None."""
        return max(self.steps(), default=None)

    def wait_for(
        self, after_step: int = -1, *, timeout_s: float, stop: threading.Event | None = None
    ) -> int | None:
        """Waits for a finished step above `after_step` and returns the newest such step.

        Args:
          after_step: The step seen last; -1 for none.
          timeout_s: Seconds to wait; 0 looks once, `math.inf` waits without end.
          stop: Ends the wait when it is set.

        Returns:
          The step, or None after `timeout_s` or when `stop` was set.
        """
        return self._poll(lambda: self._newer(after_step), timeout_s, stop)

    def wait_for_step(
        self, step: int, *, timeout_s: float, stop: threading.Event | None = None
    ) -> int | None:
        """Waits until `step` itself is finished; returns it, or None as `wait_for` does.

        Raises:
          CheckpointNotFoundError: The trainer is past `step` and it is not there: it was deleted,
            or never saved.
        """
        return self._poll(lambda: self._exactly(step), timeout_s, stop)

    def about(self, step: int) -> About:
        """Reads the JSON of a finished step (bank identity, extra, list of leaves), and no array.

        Raises:
          CheckpointNotFoundError: The step is not there.
        """
        return self._guarded(step, read_about)

    def load(
        self, step: int, *, select: Callable[[LeafPath], bool] | None = None
    ) -> HostCheckpoint:
        """Reads a finished step into host memory, whatever devices it was saved from.

        Args:
          step: A finished step.
          select: Says for each path, such as `("model", "dense", "kernel")`, whether to read it;
            the variables then lie at their full paths. None reads all that is below "model" and
            returns it without that first name.

        Raises:
          CheckpointNotFoundError: The step is not there, or was deleted while it was read.
          InvalidInputError: `select` takes nothing, or the state has no "model".
        """
        about = self.about(step)
        wanted = _selected(about, select)
        arrays = self._guarded(step, lambda directory: _read_arrays(directory, wanted))
        num_bytes = sum(array.nbytes for array in arrays.values())
        if select is None:
            arrays = {path[1:]: array for path, array in arrays.items()}
        return HostCheckpoint(step, nested(arrays), about.bank, about.extra, num_bytes)

    def load_newest(
        self, after_step: int = -1, *, select: Callable[[LeafPath], bool] | None = None
    ) -> HostCheckpoint | None:
        """Reads the newest finished step above `after_step`; None if there is none.

        Where that step is deleted while it is read, the newest one left is read instead.
        """
        while (step := self._newer(after_step)) is not None:
            try:
                return self.load(step, select=select)
            except CheckpointNotFoundError:
                continue
        return None

    def contents(self) -> str:
        """Describes what lies in the directory, for error messages."""
        if not self.directory.exists():
            return f"{self.directory} does not exist"
        names = sorted(self._names())
        return f"{self.directory} holds {', '.join(names) if names else 'nothing'}"

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []

    def _is_finished(self, step: int) -> bool:
        found = ocp.path.step.maybe_find_step_metadata(self.directory, _NAME_FORMAT, step=step)
        return found is not None

    def _newer(self, after_step: int) -> int | None:
        newest = self.latest_step()
        return newest if newest is not None and newest > after_step else None

    def _exactly(self, step: int) -> int | None:
        steps = self.steps()
        if step in steps:
            return step
        # The second look is for a listing that was made while the trainer renamed.
        if steps and steps[-1] > step and not self._is_finished(step):
            raise self._not_found(step)
        return None

    def _poll(
        self, find: Callable[[], int | None], timeout_s: float, stop: threading.Event | None
    ) -> int | None:
        deadline = time.monotonic() + timeout_s
        stop = stop or threading.Event()
        while not stop.is_set():
            found = find()
            left_s = deadline - time.monotonic()
            if found is not None or left_s <= 0:
                return found
            stop.wait(min(self.poll_s, left_s))
        return None

    def _guarded(self, step: int, read: Callable[[epath.Path], T]) -> T:
        """Calls `read` on the step's directory and says so if the step is deleted meanwhile."""
        if not self._is_finished(step):
            raise self._not_found(step)
        try:
            return read(self.directory / _NAME_FORMAT.build_name(step))
        except Exception as error:
            # Files that vanish show as half a dozen types of error, and before their directory.
            deadline = time.monotonic() + _DELETION_TIMEOUT_S
            while self._is_finished(step):
                if time.monotonic() > deadline:
                    raise
                threading.Event().wait(self.poll_s)
            raise self._not_found(step) from error

    def _not_found(self, step: int) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(f"no finished checkpoint of step {step}: {self.contents()}")


def absolute_path(directory: str | os.PathLike[str]) -> epath.Path:
    """Returns the path as TensorStore needs it: absolute, or with a scheme such as `gs://`."""
    path = epath.Path(directory)
    return path if "://" in os.fspath(path) else path.expanduser().absolute()


def _selected(about: About, select: Callable[[LeafPath], bool] | None) -> list[LeafPath]:
    wanted = [path for path in about.leaves if (select or _is_below_model)(path)]
    if not wanted:
        first_names = sorted({path[0] for path in about.leaves})
        raise InvalidInputError(
            f"nothing to read: the state holds {first_names}; "
            + ('save it as {"model": ..., ...} or pass `select`' if select is None else "")
        )
    return wanted


def _is_below_model(path: LeafPath) -> bool:
    return path[0] == "model" and len(path) > 1


def _read_arrays(step_directory: epath.Path, wanted: list[LeafPath]) -> dict[LeafPath, np.ndarray]:
    context = v1.Context()
    context.pytree_options.loading.partial_load = True
    # The type alone asks for NumPy: no shapes, no shardings, so any topology may have written it.
    abstract = nested(dict.fromkeys(wanted, np.ndarray))
    with context:
        state = v1.load(step_directory, abstract, checkpointable_name=STATE_ITEM)
    return named_leaves(state)
