"""Where knowledge is put, and which rows a process writes, on one device, many, or many processes.

B is the number of a batch's examples, b that of this process's part, and w that of the rows which
this process writes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from carls_jax.errors import ShapeError

Sharding = jax.sharding.Sharding


def place(tree: Any, sharding: Sharding | None) -> Any:
    """Puts arrays, which nobody may alter, where a sharding says.

    Args:
      tree: A pytree of NumPy arrays. Where the sharding spans several processes they are `[b, ...]`
        and become `[B, ...]`, as `jax.make_array_from_process_local_data` says.
      sharding: None: the default device.
    """
    # On CPU JAX takes these arrays over without a copy.
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), tree
    )


def is_copied(sharding: Sharding | None) -> bool:
    """Tells whether several processes hold the same part of a batch."""
    if sharding is None or sharding.is_fully_addressable:
        return False
    places = sharding.devices_indices_map((len(sharding.device_set),))
    holders: dict[Any, set[int]] = {}
    device: Any
    for device, (block,) in places.items():
        holders.setdefault(block.start, set()).add(device.process_index)
    return any(len(held_by) > 1 for held_by in holders.values())


@dataclass(frozen=True)
class OwnRows:
    """Says which rows of a batch a process writes, so that each is written once.

    Of a row that is on several devices the first of them has it to write.

    Attributes:
      blocks: Where the rows are, among the B of the batch.
      places: int `[w]`, where the rows are among this process's b.
      num_rows: b, and B.
    """

    blocks: tuple[slice, ...]
    places: NDArray[np.int64]
    num_rows: tuple[int, int]

    def of(self, output: Any) -> NDArray[Any]:
        """Returns the rows `[w, ...]` of a global array `[B, ...]`, or of a local one `[b, ...]`.

        Raises:
          ShapeError: It is neither, or the rows are not all on this process's devices.
        """
        is_local = not isinstance(output, jax.Array) or output.is_fully_addressable
        expected = self.num_rows[0 if is_local else 1]
        if np.shape(output)[:1] != (expected,):
            raise ShapeError(
                f"an output has shape {list(np.shape(output))}, expected [{expected}, ...]: "
                f"{self.num_rows[0]} rows of the batch's {self.num_rows[1]} are this process's"
            )
        if is_local:
            return np.asarray(output)[self.places]
        if output.is_fully_replicated:
            whole = np.asarray(output.addressable_data(0))
            return np.concatenate([whole[:0], *(whole[block] for block in self.blocks)])
        parts = _parts(output)
        found = [_cut(parts, block) for block in self.blocks]
        return np.concatenate([parts[0][1][:0], *found])


@functools.lru_cache(maxsize=64)
def own_rows(sharding: Sharding | None, num_local: int) -> OwnRows | None:
    """Returns which rows this process writes of those in its part of a batch; None: all of them."""
    if sharding is None or sharding.is_fully_addressable:
        return None
    numbers = jax.make_array_from_process_local_data(sharding, np.arange(num_local, dtype=np.int32))
    shards = sorted(
        (shard for shard in numbers.addressable_shards if shard.replica_id == 0),
        key=lambda shard: shard.index[0].start or 0,
    )
    places = [np.asarray(shard.data) for shard in shards]
    return OwnRows(
        blocks=tuple(_bounds(shard.index[0], numbers.shape[0]) for shard in shards),
        places=np.concatenate([np.empty(0, np.int64), *places]),
        num_rows=(num_local, numbers.shape[0]),
    )


def _bounds(block: slice, size: int) -> slice:
    return slice(*block.indices(size)[:2])


def _parts(output: jax.Array) -> list[tuple[slice, NDArray[Any]]]:
    """Returns the parts of a global array that are here, in order, each once."""
    parts: dict[int, tuple[slice, NDArray[Any]]] = {}
    for shard in output.addressable_shards:
        if shard.data.shape[1:] != output.shape[1:]:
            raise ShapeError(
                f"an output of shape {list(output.shape)} is sharded along other axes than its "
                f"first ({output.sharding}): give outputs the sharding of look_ahead"
            )
        block = _bounds(shard.index[0], output.shape[0])
        if block.start not in parts:
            parts[block.start] = (block, np.asarray(shard.data))
    return [parts[start] for start in sorted(parts)]


def _cut(parts: list[tuple[slice, NDArray[Any]]], block: slice) -> NDArray[Any]:
    """Returns the rows of a block, from one part after another."""
    cut, at = [], block.start
    for part, rows in parts:
        if part.start <= at < part.stop:
            cut.append(rows[at - part.start : block.stop - part.start])
            at = min(part.stop, block.stop)
    if at < block.stop:
        here = ", ".join(f"{part.start}:{part.stop}" for part, _ in parts)
        raise ShapeError(
            f"rows {block.start}:{block.stop} of an output are written here, and this process has "
            f"{here}: give outputs the sharding of look_ahead"
        )
    return np.concatenate(cut)
