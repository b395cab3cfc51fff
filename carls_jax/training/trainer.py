"""`fit`: the training loop that all paradigms share; each brings a `Task`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from flax import nnx

from carls_jax.bank import Bank
from carls_jax.errors import ConfigError, InvalidInputError
from carls_jax.training.knowledge import Known
from carls_jax.training.plan import Batch, Lookup, Push, Update, name_of
from carls_jax.training.session import Session

Model = TypeVar("Model", bound=nnx.Module)
Loss = Callable[[Any, Batch, Mapping[str, Known]], tuple[jax.Array, Mapping[str, Any]]]
Step = Callable[[Any, Batch, Mapping[str, Known]], tuple[Any, dict[str, Any]]]
TrainedFields = Mapping[str, tuple[str, ...]]  # by lookup


@dataclass(frozen=True)
class TrainerConfig:
    """Says how long and how fast to train.

    Attributes:
      num_steps: Last step of the run.
      learning_rate: Of Adam, where no other optimizer is given.
      look_ahead_depth: How many steps are held ready, the present one included.
      optimizer: Trains the model's parameters. None: Adam.
    """

    num_steps: int
    learning_rate: float = 1e-3
    look_ahead_depth: int = 2
    optimizer: optax.GradientTransformation | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "look_ahead_depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: allowed is 1 and more")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate={self.learning_rate}: give a positive number")


@dataclass(frozen=True)
class Task:
    """Says what to learn: this is what a paradigm supplies.

    Attributes:
      loss: `loss(model, batch, knowledge)` returns the mean loss of a batch, a scalar, and a dict:
        the outputs that `writes` names, and metrics, which are scalars.
      plan: The knowledge that the loss uses.
      writes: What is done with outputs, by name.
      trainable: Lookups whose rows are trained with the model: the gradients of all their fields
        that have an optimizer are pushed to the bank, summed where a key is repeated.
      evaluate: `evaluate(model)`, called after each checkpoint with the model in evaluation mode,
        returns numbers for the metrics.
    """

    loss: Loss
    plan: Mapping[str, Lookup] = field(default_factory=dict)
    writes: Mapping[str, Update] = field(default_factory=dict)
    trainable: tuple[str, ...] = ()
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name in self.trainable:
            if name not in self.plan:
                raise InvalidInputError(
                    f"trainable={self.trainable}: {name!r} is not in the plan, which has "
                    f"{', '.join(self.plan) or 'nothing'}"
                )


def fit(
    session: Session,
    model: Model,
    task: Task,
    batches: Iterable[Batch],
    config: TrainerConfig,
) -> Model:
    """Trains a model, or goes on training it where the session's last checkpoint was.

    All variables of the model are kept in checkpoints, batch statistics and random keys among
    them; its `nnx.Param` are trained.

    Args:
      session: Bank, checkpoints and makers; `begin` is called here.
      model: Its arrays are given away (donated) and come back trained.
      task: What to learn.
      batches: Any iterable of dicts; entries that are not numbers reach the plan, not the loss.
      config: How long and how fast.

    Returns:
      The same model, trained.

    Raises:
      InvalidInputError: A trainable lookup has no field that the bank can train.
    """
    optimizer = config.optimizer or optax.adam(config.learning_rate)
    trained = _trained_fields(task, session.bank)
    model.train()
    graph, variables = nnx.split(model)
    moments = optimizer.init(nnx.filter_state(variables, nnx.Param))
    state = session.begin({"model": variables, "optimizer": moments})
    train_step = _train_step(graph, task.loss, optimizer, trained)
    writes = {**task.writes, **_pushes(task, trained)}
    for step, batch, known in session.look_ahead(
        batches,
        task.plan,
        num_steps=config.num_steps,
        depth=config.look_ahead_depth,
        writes=writes,
    ):
        state, told = train_step(state, _numbers(batch), known)
        session.write(step, {name: told.pop(name) for name in writes if name in told})
        session.log(step, told)
        if session.checkpoint(step, state) and task.evaluate:
            trained_model = nnx.merge(graph, state["model"], copy=True)
            trained_model.eval()
            session.metrics.write(step, task.evaluate(trained_model))
    nnx.update(model, state["model"])
    return model


def _trained_fields(task: Task, bank: Bank) -> TrainedFields:
    """Returns, for each trainable lookup, the fields that have an optimizer."""
    trained = {}
    for name in task.trainable:
        last = task.plan[name].last
        spec = bank.table(name_of(last.table)).spec
        trained[name] = tuple(one for one in last.fields if spec.field(one).optimizer)
        if spec.per_source or not trained[name]:
            reason = "is per_source" if spec.per_source else "has no optimizer for them"
            raise InvalidInputError(
                f"trainable lookup {name!r} reads {', '.join(last.fields)}, but table "
                f"{spec.name!r} {reason}: declare a Field(optimizer=...)"
            )
    return trained


def _pushes(task: Task, trained: TrainedFields) -> dict[str, Push]:
    return {
        _gradient_of(name, one): Push(task.plan[name].last.table, one, keys=name)
        for name, fields in trained.items()
        for one in fields
    }


def _train_step(
    graph: Any, loss: Loss, optimizer: optax.GradientTransformation, trained: TrainedFields
) -> Step:
    """Returns the compiled step: (state, batch, known) to (state, what the loss and it tell)."""

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, batch: Batch, known: Mapping[str, Known]) -> Any:
        parameters, others = nnx.split_state(state["model"], nnx.Param, ...)
        rows = {name: {one: known[name][one] for one in fields} for name, fields in trained.items()}

        def objective(parameters: Any, rows: Any) -> Any:
            # Copied, since the loss changes variables (batch statistics) at another trace level.
            model = nnx.merge(graph, parameters, others, copy=True)
            value, told = loss(model, batch, {**known, **_with(rows, known)})
            return value, (told, nnx.state(model, nnx.Not(nnx.Param)))

        (value, (told, others)), gradients = jax.value_and_grad(
            objective, argnums=(0, 1), has_aux=True
        )(parameters, rows)
        updates, moments = optimizer.update(gradients[0], state["optimizer"], parameters)
        parameters = optax.apply_updates(parameters, updates)
        pushed = {
            _gradient_of(name, one): gradient
            for name, of_fields in gradients[1].items()
            for one, gradient in of_fields.items()
        }
        state = {"model": nnx.merge_state(parameters, others), "optimizer": moments}
        return state, {"loss": value, **told, **pushed}

    return train_step


def _with(rows: Mapping[str, Mapping[str, Any]], known: Mapping[str, Known]) -> dict[str, Known]:
    """Returns the lookups of `rows` with its values in place of those that were found."""
    return {
        name: replace(known[name], values={**known[name].values, **values})
        for name, values in rows.items()
    }


def _gradient_of(lookup: str, field_name: str) -> str:
    return f"gradient of {lookup}.{field_name}"


def _numbers(batch: Batch) -> dict[str, Any]:
    return {
        name: value
        for name, value in batch.items()
        if isinstance(value, jax.Array) or np.asarray(value).dtype.kind in "biuf"
    }
