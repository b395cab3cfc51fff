from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from carls_jax import hooks
from carls_jax.bank import Field, LocalBank, Table, TableSpec
from carls_jax.bank import initializers as init
from carls_jax.bank.optimizers import optimizer
from carls_jax.errors import BankClosedError, FieldNotFoundError, InvalidInputError
from carls_jax.nn import DynamicEmbedding

Loss = Callable[[DynamicEmbedding, jax.Array], jax.Array]

VOCABULARY = 6
RATE = 0.5
BATCHES = [
    (np.array([[0, 1], [1, 1], [4, -1]], np.int32), np.array([1.0, -1.0, 0.5], np.float32)),
    (np.array([[5, 0], [-1, -1], [2, 4]], np.int32), np.array([0.0, 2.0, -0.5], np.float32)),
]


@pytest.fixture
def table() -> Iterator[Table]:
    spec = TableSpec(
        "words",
        {
            "embedding": Field(
                (3,), init=init.uniform(-1.0, 1.0), optimizer=optimizer("sgd", learning_rate=RATE)
            ),
            "label": Field(),
        },
    )
    with LocalBank() as bank:
        yield bank.table(spec)
        jax.effects_barrier()
        hooks.check(bank)


class Model(nnx.Module):
    """Predicts a number from the sum of the embeddings of two words."""

    def __init__(self, embed: nnx.Module) -> None:
        self.embed = embed
        self.readout = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def __call__(self, keys: jax.Array) -> jax.Array:
        return jnp.tanh(self.readout(self.embed(keys).sum(axis=1)))[:, 0]


class DenseEmbedding(nnx.Module):
    """The same layer with its rows in the model."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = nnx.Param(jnp.asarray(rows))

    def __call__(self, keys: jax.Array) -> jax.Array:
        return jnp.where(keys[..., None] == -1, 0.0, self.rows[...][keys])


@nnx.jit
def train_step(
    model: Model, optimizer: nnx.Optimizer, keys: jax.Array, targets: jax.Array
) -> jax.Array:
    loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(keys) - targets) ** 2))(model)
    optimizer.update(model, gradients)
    return loss


def train(model: Model) -> list[float]:
    sgd = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    return [float(train_step(model, sgd, *batch)) for batch in BATCHES * 5]


def counters(table: Table) -> tuple[int, int]:
    jax.effects_barrier()
    counts = table.stats().counters
    return counts.get("lookup_calls", 0), counts.get("push_calls", 0)


def test_rows_in_the_bank_move_as_those_of_a_dense_model(table: Table) -> None:
    rows = table.lookup(np.arange(VOCABULARY), fields=("embedding",), create=True)["embedding"]
    dense = Model(DenseEmbedding(rows))
    dynamic = Model(DynamicEmbedding(table))

    dense_losses = train(dense)
    dynamic_losses = train(dynamic)

    np.testing.assert_allclose(dynamic_losses, dense_losses, rtol=1e-5)
    moved = table.lookup(np.arange(VOCABULARY))["embedding"]
    np.testing.assert_allclose(moved, dense.embed.rows[...], rtol=1e-5, atol=1e-6)
    assert np.abs(moved - rows).max() > 0.1
    np.testing.assert_array_equal(moved[3], rows[3])  # no batch holds word 3
    np.testing.assert_allclose(
        dynamic.readout.kernel[...], dense.readout.kernel[...], rtol=1e-5, atol=1e-6
    )


def test_every_pull_of_a_training_step_is_followed_by_one_push(table: Table) -> None:
    train(Model(DynamicEmbedding(table)))

    assert counters(table) == (10, 10)


def test_evaluation_pushes_nothing(table: Table) -> None:
    nnx.jit(lambda model, keys: model(keys))(Model(DynamicEmbedding(table)), BATCHES[0][0])

    assert counters(table) == (1, 0)


def test_the_only_parameter_is_a_zero_that_stays_zero(table: Table) -> None:
    model = Model(DynamicEmbedding(table))
    train(model)

    parameters = nnx.state(model.embed, nnx.Param)
    assert jax.tree.leaves(parameters) == [0.0]


def test_rows_are_frozen_where_the_handle_is_not_differentiated(table: Table) -> None:
    model = Model(DynamicEmbedding(table))
    keys, targets = BATCHES[0]
    readout_only = nnx.DiffState(0, nnx.PathContains("readout"))

    nnx.grad(lambda m: jnp.mean((m(keys) - targets) ** 2), argnums=readout_only)(model)

    assert counters(table) == (1, 0)


def test_padding_is_zeros_and_an_unknown_key_gets_its_initial_row(table: Table) -> None:
    embeddings = DynamicEmbedding(table)(np.array([[7, -1]], np.int32))

    assert embeddings.shape == (1, 2, 3)
    assert embeddings[0, 1].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(embeddings[0, 0], table.lookup([7])["embedding"][0])
    assert len(table) == 1


def test_without_create_an_unknown_key_is_zeros_and_stays_unknown(table: Table) -> None:
    layer = DynamicEmbedding(table, create=False)
    keys = np.array([7, 8], np.int32)

    value, _ = nnx.value_and_grad(lambda layer: layer(keys).sum())(layer)

    assert float(value) == 0.0
    assert counters(table) == (1, 1)
    assert len(table) == 0


def test_64_bit_keys_are_given_as_pairs(table: Table) -> None:
    keys = np.array([2**40 + 1, -1])

    embeddings = DynamicEmbedding(table)(hooks.split_keys(keys))

    np.testing.assert_array_equal(embeddings, table.lookup(keys)["embedding"])


def test_a_combiner_makes_one_embedding_of_a_bag(table: Table) -> None:
    table.update([1, 2, 3], {"embedding": [[1.0, 2, 3], [3.0, 4, 5], [8.0, 8, 8]]})
    bags = np.array([[1, 2, -1], [3, -1, -1], [-1, -1, -1]], np.int32)

    summed = DynamicEmbedding(table, combiner="sum")(bags)
    mean = DynamicEmbedding(table, combiner="mean")(bags)

    assert summed.tolist() == [[4.0, 6.0, 8.0], [8.0, 8.0, 8.0], [0.0, 0.0, 0.0]]
    assert mean.tolist() == [[2.0, 3.0, 4.0], [8.0, 8.0, 8.0], [0.0, 0.0, 0.0]]


def test_the_gradient_of_a_mean_is_shared_by_the_bag(table: Table) -> None:
    table.update([1, 2, 3], {"embedding": np.ones((3, 3))})
    bags = np.array([[1, 2], [3, -1]], np.int32)
    layer = DynamicEmbedding(table, combiner="mean")

    nnx.grad(lambda layer: layer(bags).sum())(layer)
    jax.effects_barrier()

    # Rate 0.5 times a gradient of 1/2 for each of two keys, and of 1 for the key alone.
    moved = table.lookup([1, 2, 3])["embedding"]
    assert moved.tolist() == [[0.75] * 3, [0.75] * 3, [0.5] * 3]


def test_gradients_are_pushed_with_the_step(table: Table) -> None:
    layer = DynamicEmbedding(table)
    keys = np.array([1], np.int32)

    nnx.jit(nnx.grad(lambda layer, step: layer(keys, step=step).sum()))(layer, jnp.uint32(12))
    jax.effects_barrier()

    assert table.lookup([1]).step["embedding"].tolist() == [12]


def test_the_layer_survives_split_merge_and_clone(table: Table) -> None:
    layer = DynamicEmbedding(table)
    keys = np.array([1], np.int32)

    merged = nnx.merge(*nnx.split(layer))

    np.testing.assert_array_equal(merged(keys), layer(keys))
    np.testing.assert_array_equal(nnx.clone(layer)(keys), layer(keys))


def bag_loss(layer: DynamicEmbedding, keys: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(layer(keys)))


def on_devices(layer: DynamicEmbedding, keys: jax.Array) -> jax.Array:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharded = nnx.shard_map(
        lambda layer, keys: jax.lax.psum(bag_loss(layer, keys), "data"),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    return sharded(layer, keys)


def in_turns(layer: DynamicEmbedding, keys: jax.Array) -> jax.Array:
    axes = (nnx.StateAxes({...: None}), 0)
    return nnx.scan(bag_loss, in_axes=axes, out_axes=0)(layer, keys).sum()


@pytest.mark.parametrize(
    ("transformed", "calls"),
    [
        (lambda layer, keys: nnx.vmap(bag_loss, in_axes=(None, 0))(layer, keys).sum(), (1, 1)),
        (in_turns, (4, 4)),
        (nnx.remat(bag_loss), (2, 1)),
        (nnx.remat(bag_loss, policy=hooks.save_lookups), (1, 1)),
        (on_devices, (2, 2)),
    ],
    ids=["vmap", "scan", "remat", "saved", "shard_map"],
)
def test_rows_move_once_whatever_nnx_makes_of_the_layer(
    table: Table, transformed: Loss, calls: tuple[int, int]
) -> None:
    keys = np.arange(8, dtype=np.int32)
    rows = table.lookup(keys, fields=("embedding",), create=True)["embedding"]
    before = counters(table)

    step = nnx.jit(nnx.value_and_grad(transformed))
    step(DynamicEmbedding(table), jnp.asarray(keys.reshape(4, 2)))

    after = counters(table)
    assert (after[0] - before[0], after[1] - before[1]) == calls
    moved = table.lookup(keys)["embedding"]
    np.testing.assert_allclose(moved, rows - RATE * np.cos(rows), rtol=1e-5, atol=1e-6)


def test_a_bank_closed_between_steps_stops_the_training(table: Table) -> None:
    step = hooks.checking(table.bank)(train_step)
    model = Model(DynamicEmbedding(table))
    sgd = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    step(model, sgd, *BATCHES[0])
    table.bank.close()

    with pytest.raises(BankClosedError, match=r"hooks\.lookup of table 'words'"):
        step(model, sgd, *BATCHES[0])


def test_arguments_that_cannot_work_are_named(table: Table) -> None:
    with pytest.raises(FieldNotFoundError, match="no field 'color'"):
        DynamicEmbedding(table, "color")
    with pytest.raises(InvalidInputError, match="'label' of table 'words' has no optimizer"):
        DynamicEmbedding(table, "label")
    with pytest.raises(InvalidInputError, match="combiner='max'"):
        DynamicEmbedding(table, combiner="max")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="last axis is the bag"):
        DynamicEmbedding(table, combiner="sum")(np.int32(1))
