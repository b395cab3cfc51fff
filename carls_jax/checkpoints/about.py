"""The small JSON beside the arrays of a checkpoint.

It is an Orbax item of its own, so that it is read without touching an array. It also lists the
leaves: Orbax finds them by opening every array of the state, which takes longer than reading the
model (see docs/decisions/checkpoints.md).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from carls_jax.checkpoints.leaves import LeafPath, LeafSpec
from carls_jax.errors import InvalidInputError

STATE_ITEM = "state"
ABOUT_ITEM = "about"


@dataclasses.dataclass(frozen=True)
class About:
    """Says what a checkpoint belongs to and what it holds.

    Attributes:
      bank: The identity of the bank snapshot taken with it, None when there was none.
      extra: Whatever small JSON the trainer added (data-iterator state, seeds), or None.
      leaves: dtype and shape of every stored leaf, by path.
    """

    bank: dict[str, Any] | None
    extra: dict[str, Any] | None
    leaves: dict[LeafPath, LeafSpec]

    def to_json(self) -> dict[str, Any]:
        """Returns the dict that is saved; see `from_json`."""
        leaves = [[list(path), spec.dtype, list(spec.shape)] for path, spec in self.leaves.items()]
        return {"bank": self.bank, "extra": self.extra, "leaves": leaves}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> About:
        """Returns what `to_json` wrote."""
        leaves = {
            tuple(path): LeafSpec(dtype, tuple(shape)) for path, dtype, shape in saved["leaves"]
        }
        return cls(bank=saved["bank"], extra=saved["extra"], leaves=leaves)


def read_about(step_directory: epath.Path) -> About:
    """Reads the JSON of one checkpoint.

    Raises:
      InvalidInputError: The checkpoint has none: another program wrote it.
    """
    try:
        saved = ocp.JsonCheckpointHandler().restore(step_directory / ABOUT_ITEM)
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"{step_directory} has no item {ABOUT_ITEM!r}: it was not written by "
            "carls_jax.checkpoints.Checkpointer, or is being deleted"
        ) from error
    return About.from_json(saved)


def checked_json(name: str, value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns a dict that JSON gives back unchanged.

    Raises:
      InvalidInputError: JSON cannot hold it (NumPy values, NaN) or would change it (tuples become
        lists, integer keys become strings).
    """
    if value is None:
        return None
    try:
        returned = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"`{name}` cannot be written as JSON: {error}") from error
    if returned != value:
        raise InvalidInputError(
            f"`{name}` would come back from JSON as {returned}, not as {dict(value)}; "
            "use string keys and lists instead of tuples"
        )
    return dict(returned)
