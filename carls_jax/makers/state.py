"""`StateStore`: what a maker keeps from one refresh to the next, also over restarts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from carls_jax.errors import InvalidInputError

# A run is put back to a checkpoint that its trainer has kept, and those are fewer.
_STATES_KEPT = 16
# `np.savez` has arguments of its own, whose names a user may take too.
_PREFIX = "state."


class StateStore:
    """Keeps the states of a maker by the checkpoint that it had refreshed from.

    A run that is put back to an earlier checkpoint goes on with the state of then.

    Args:
      directory: Where the states are kept as `state-<step>.npz`. None: in memory.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._memory: dict[int, dict[str, Any]] = {}

    def before(self, step: int) -> dict[str, Any]:
        """Returns a copy of the newest state of a step below `step`; empty if there is none."""
        steps = [known for known in self._steps() if known < step]
        return self._load(max(steps)) if steps else {}

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keeps a state; later ones, of a run that was put back, are dropped.

        Raises:
          InvalidInputError: An entry is no array or number.
        """
        arrays = {name: _checked(name, value) for name, value in state.items()}
        for known in self._steps():
            if known > step:
                self._drop(known)
        for known in sorted(self._steps())[: -_STATES_KEPT + 1]:
            self._drop(known)
        if self._directory is None:
            self._memory[step] = arrays
        elif arrays or self._steps():
            self._write(self._path(step), arrays)

    def _steps(self) -> list[int]:
        if self._directory is None:
            return list(self._memory)
        return [int(path.stem.split("-")[1]) for path in self._directory.glob("state-*.npz")]

    def _path(self, step: int) -> Path:
        assert self._directory is not None
        return self._directory / f"state-{step}.npz"

    def _load(self, step: int) -> dict[str, Any]:
        if self._directory is None:
            return {name: value.copy() for name, value in self._memory[step].items()}
        with np.load(self._path(step), allow_pickle=False) as file:
            return {name.removeprefix(_PREFIX): value for name, value in file.items()}

    def _write(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: a killed maker leaves the old state or the new one.
        aside = path.with_suffix(".tmp")
        with aside.open("wb") as file:
            np.savez(file, **{_PREFIX + name: array for name, array in arrays.items()})  # type: ignore[arg-type]
        os.replace(aside, path)

    def _drop(self, step: int) -> None:
        if self._directory is None:
            del self._memory[step]
        else:
            self._path(step).unlink()


def _checked(name: str, value: Any) -> np.ndarray:
    try:
        array = np.array(value)
    except (TypeError, ValueError) as error:  # random keys, ragged lists
        raise _not_storable(name, value) from error
    if array.dtype.kind not in "biufc":
        raise _not_storable(name, value)
    return array


def _not_storable(name: str, value: Any) -> InvalidInputError:
    return InvalidInputError(
        f"ctx.state[{name!r}] is a {type(value).__name__} with dtype "
        f"{getattr(value, 'dtype', 'none')}; a maker's state holds NumPy arrays and numbers"
    )
