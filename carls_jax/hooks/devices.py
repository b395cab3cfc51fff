"""Which devices of a `jax.shard_map` call the host, and how the others learn its answer.

Each device calls for its own part. Where an operand is equal on several devices, the first of them
calls for all, and sends them the answer: so there is one push for each pull, and all have the same
rows even while others write them. JAX tells by types which are equal, and only with
`check_vma=True`, its default; otherwise each device calls.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from carls_jax.errors import InvalidInputError


def check_host_in_reach(operand: jax.Array) -> None:
    """Checks that JAX can call the host with an array from where it is.

    Raises:
      InvalidInputError: It cannot.
    """
    mesh = jax.sharding.get_abstract_mesh()
    left = [axis for axis in mesh.axis_names if axis not in mesh.manual_axes]
    if mesh.manual_axes and left:
        raise InvalidInputError(
            f"a hook was called inside a jax.shard_map with axis_names={set(mesh.manual_axes)}, "
            f"which leaves {', '.join(left)} of its mesh to the compiler, where JAX calls no host: "
            "leave axis_names out"
        )
    if not isinstance(operand, jax.core.Tracer) and len(operand.sharding.device_set) > 1:
        raise InvalidInputError(
            f"a hook was called outside jit with arrays on {len(operand.sharding.device_set)} "
            "devices, where JAX cannot give back the answer: call it inside jax.jit"
        )


def call_once(
    call: Callable[[jax.Array], jax.Array], operand: jax.Array, *, shape: tuple[int, ...]
) -> jax.Array:
    """Calls the host from one device for all whose operands are known to be equal.

    Args:
      call: Calls the host, from each device that comes to it: an operand to uint32 `shape`.
      operand: What is sent.
      shape: Of the answer.

    Returns:
      The answer, equal on the devices whose operands are, and typed so.
    """
    axes = _axes_of_equals(operand)
    if axes:
        # The first is asked for, not assumed, so that all are waited for: of a branch that another
        # device takes alone, the call would be lost.
        index = lax.axis_index(axes)
        is_first = index == lax.pmin(index, axes)
        answer = lax.cond(is_first, call, lambda _: jnp.zeros(shape, jnp.uint32), operand)
        answer = lax.psum(lax.pcast(answer, axes, to="varying"), axes)
    else:
        answer = call(operand)
    # JAX takes an answer for equal on all devices, and would push the sum of their gradients.
    varying = tuple(jax.typeof(operand).mat.varying)
    return lax.pcast(answer, varying, to="varying") if varying else answer


def _axes_of_equals(operand: jax.Array) -> tuple[str, ...]:
    """Returns the mesh axes along which JAX knows that an array is equal."""
    axes = jax.sharding.get_abstract_mesh().manual_axes
    if not axes or not jax.typeof(lax.pcast(jnp.uint32(0), axes, to="varying")).mat.varying:
        return ()  # with check_vma=False no type varies
    return tuple(axis for axis in axes if axis not in jax.typeof(operand).mat.varying)
