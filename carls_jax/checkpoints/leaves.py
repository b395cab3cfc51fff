"""The leaves of a pytree by name, free of the classes that held them.

A checkpoint holds a nested dict with string keys, made from the key paths of whatever pytree the
trainer had (dicts, NNX states, named tuples of optax, lists). So a maker reads it without the
trainer's classes, and empty nodes (`None`, `optax.EmptyState`) need no place in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from carls_jax.errors import InvalidInputError

LeafPath = tuple[str, ...]

# Strings, objects, dates and durations: TensorStore holds numbers only.
_UNSTORABLE_KINDS = "OSUMm"
_NUM_SHOWN = 5


class LeafSpec(NamedTuple):
    """Holds the dtype name and the shape of a leaf as it is stored."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def named_leaves(tree: Any) -> dict[LeafPath, Any]:
    """Returns the leaves of a pytree by path, in the order of `jax.tree.leaves`.

    An NNX Variable is named by its place in the module, not by its own attribute `value`.

    Raises:
      InvalidInputError: The tree is a single leaf, has none, or two leaves have the same name.
    """
    leaves: list[tuple[LeafPath, Any]] = []
    for path, node in _flattened(tree, is_leaf=_is_variable):
        if _is_variable(node):
            leaves += [(_names((*path, *inner[1:])), leaf) for inner, leaf in _flattened(node)]
        else:
            leaves.append((_names(path), node))
    paths = [path for path, _ in leaves]
    if not paths or () in paths:
        raise InvalidInputError(
            f"expected a container with at least one array, got {type(tree).__name__}; "
            'put the array in a dict, for instance {"model": array}'
        )
    _check_distinct(paths)
    return dict(leaves)


def nested(leaves: Mapping[LeafPath, Any]) -> dict[str, Any]:
    """Returns the nested dict whose leaves lie at the given paths."""
    tree: dict[str, Any] = {}
    for (*parents, name), leaf in leaves.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def is_random_key(leaf: Any) -> bool:
    """Says whether a leaf is an array of typed JAX random keys (or describes one)."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def leaf_spec(path: LeafPath, leaf: Any) -> LeafSpec:
    """Returns the dtype and shape in which a leaf is stored; random keys are stored as uint32.

    Raises:
      InvalidInputError: The leaf is not numeric or has no elements; the message names its path.
    """
    if is_random_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif not hasattr(leaf, "shape"):
        leaf = np.asarray(leaf)
    if np.dtype(leaf.dtype).kind in _UNSTORABLE_KINDS or 0 in leaf.shape:
        raise InvalidInputError(
            f"leaf {'/'.join(path)} cannot be saved: dtype {leaf.dtype}, shape {list(leaf.shape)}; "
            "a state holds numbers, with at least one element per leaf; text belongs in `extra`"
        )
    return LeafSpec(str(leaf.dtype), tuple(leaf.shape))


def leaf_specs(leaves: Mapping[LeafPath, Any]) -> dict[LeafPath, LeafSpec]:
    """Returns the spec of each leaf; see `leaf_spec`."""
    return {path: leaf_spec(path, leaf) for path, leaf in leaves.items()}


def check_fit(
    saved: Mapping[LeafPath, LeafSpec], wanted: Mapping[LeafPath, LeafSpec], *, what: str
) -> None:
    """Refuses saved leaves that are not exactly the wanted ones.

    Raises:
      InvalidInputError: Names, dtypes or shapes differ; the message begins with `what` and lists
        the first differences of each kind.
    """
    both = [path for path in wanted if path in saved]
    problems = {
        "missing": ["/".join(path) for path in wanted if path not in saved],
        "not expected": ["/".join(path) for path in saved if path not in wanted],
        "different": [
            f"{'/'.join(path)} is {saved[path]}, expected {wanted[path]}"
            for path in both
            if saved[path] != wanted[path]
        ],
    }
    found = [f"{kind}: {_shortened(lines)}" for kind, lines in problems.items() if lines]
    if found:
        raise InvalidInputError(f"{what}: {'; '.join(found)}")


def placement(leaf: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding that a leaf insists on, None for host values and uncommitted arrays.

    An uncommitted array stays so when it is restored: committed to one device, it could no longer
    meet a sharded batch in a jitted step.
    """
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def in_form_of(like: Any, value: Any) -> Any:
    """Returns a stored value as the kind of leaf that `like` is, on the devices of `like`."""
    if is_random_key(like) and not is_random_key(value):
        value = jax.random.wrap_key_data(jnp.asarray(value), impl=_key_impl(like))
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        sharding = placement(like)
        return jnp.asarray(value) if sharding is None else jax.device_put(value, sharding)
    if isinstance(like, np.ndarray):
        return value
    return value[()] if isinstance(like, np.generic) else type(like)(value.item())


def rebuilt(like: Any, values: Mapping[LeafPath, Any]) -> Any:
    """Returns a tree of the structure of `like` with the given values at its leaves."""
    leaves = [in_form_of(leaf, values[path]) for path, leaf in named_leaves(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def into(target: Any, variables: Any) -> Any:
    """Puts host variables into a model: every leaf of it, no more and no fewer.

    Args:
      target: An NNX module, which is changed in place (as `nnx.update` does), or any pytree of
        arrays or `jax.ShapeDtypeStruct` (Linen variables, an NNX state), which is not changed.
      variables: Nested dict of arrays, as `HostCheckpoint.variables`; it is copied. Inside a
        jitted function they may be traced.

    Returns:
      The module, or a new tree of the structure of `target`, on the devices of its leaves.

    Raises:
      InvalidInputError: A leaf is missing, not expected, or of another shape or dtype. Batch
        statistics that were left out are found here, before they spoil predictions.
    """
    if isinstance(target, nnx.Module):
        nnx.update(target, into(nnx.state(target), variables))
        return target
    values = named_leaves(variables)
    check_fit(
        leaf_specs(values),
        leaf_specs(named_leaves(target)),
        what="`variables` do not fit the model",
    )
    # JAX may take over an aligned NumPy buffer without copying it, and the caller keeps his.
    copied = {
        path: value.copy() if isinstance(value, np.ndarray) else value
        for path, value in values.items()
    }
    return rebuilt(target, copied)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _flattened(tree: Any, **options: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree, **options)[0]


def _check_distinct(paths: list[LeafPath]) -> None:
    # Orbax joins the names of a path with dots, so {"a.b": x} and {"a": {"b": y}} would meet; and
    # {1: x, "1": {"b": y}} would make a leaf of what is also a node.
    taken = {".".join(path) for path in paths}
    nodes = {".".join(path[:end]) for path in paths for end in range(1, len(path))}
    if len(taken) < len(paths) or taken & nodes:
        names = [".".join(path) for path in paths]
        clash = next(name for name in names if names.count(name) > 1 or name in nodes)
        raise InvalidInputError(f"two places of the tree are named {clash!r}; rename one of them")


def _names(path: Iterable[Any]) -> LeafPath:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def _key_impl(like: Any) -> Any:
    """Returns the generator of a random key; tracing finds it for abstract keys too."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]


def _shortened(lines: list[str]) -> str:
    shown = ", ".join(lines[:_NUM_SHOWN])
    return shown if len(lines) <= _NUM_SHOWN else f"{shown} and {len(lines) - _NUM_SHOWN} more"
