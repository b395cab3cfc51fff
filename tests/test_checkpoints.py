"""Checkpoints: what is saved comes back, and makers see finished steps only."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from etils import epath
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from carls_jax.checkpoints import Checkpointer, CheckpointWatcher, HostCheckpoint, into
from carls_jax.checkpoints.about import read_about
from carls_jax.checkpoints.leaves import named_leaves, nested
from carls_jax.errors import CheckpointNotFoundError, ConfigError, InvalidInputError

SMALL = {"model": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}


class Classifier(nnx.Module):
    """Is a small network with parameters, batch statistics and a random key of its own."""

    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers[1](self.dropout(nnx.relu(self.norm(self.layers[0](x)))))


def trained(seed: int) -> Classifier:
    model = Classifier(seed)
    for shift in range(3):
        model(jnp.linspace(shift, shift + 5, 64).reshape(16, 4))
    return model


def train_state(model: Classifier) -> dict[str, Any]:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return {
        "model": nnx.state(model),
        "optimizer": optimizer.init(nnx.state(model, nnx.Param)),
        "key": jax.random.fold_in(jax.random.key(7), 1),
        "epoch": 3,
    }


def predictions(model: Classifier) -> np.ndarray:
    model.eval()
    return np.asarray(model(jnp.linspace(0, 1, 32).reshape(8, 4)))


def assert_same_leaves(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, jax.Array | np.ndarray):
            assert ours.dtype == theirs.dtype
        if isinstance(ours, jax.Array) and jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def save_steps(directory: Path, *steps: int) -> None:
    with Checkpointer(directory) as checkpointer:
        for step in steps:
            checkpointer.save(step, SMALL)


def run_python(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


class TestRoundTrip:
    @pytest.mark.parametrize("background", [False, True])
    def test_nnx_model_optax_state_and_random_keys_come_back(
        self, tmp_path: Path, background: bool
    ) -> None:
        state = train_state(trained(seed=0))
        with Checkpointer(tmp_path, background=background) as checkpointer:
            checkpointer.save(12, state, bank={"uuid": "b1"}, extra={"batch": 40})
            restored = checkpointer.restore(like=train_state(Classifier(seed=1)))
        assert (restored.step, restored.bank, restored.extra) == (12, {"uuid": "b1"}, {"batch": 40})
        assert_same_leaves(restored.state, state)
        draw = jax.random.normal(restored.state["key"], (4,))
        np.testing.assert_array_equal(draw, jax.random.normal(state["key"], (4,)))

    def test_an_abstract_tree_is_enough_to_restore(self, tmp_path: Path) -> None:
        state = {"model": {"kernel": jnp.arange(3.0)}, "keys": jax.random.split(jax.random.key(3))}
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(0, state)
            restored = checkpointer.restore(0, like=jax.eval_shape(lambda: state))
        assert_same_leaves(restored.state, state)

    def test_every_kind_of_number_keeps_its_type(self, tmp_path: Path) -> None:
        state = {
            "bfloat16": jnp.asarray([1.5, -2.0], jnp.bfloat16),
            "float8": np.asarray([0.5, 2.0], ml_dtypes.float8_e4m3fn),
            "int64": np.asarray([2**40 + 1, -1]),
            "bool": np.asarray([True, False]),
            "complex": np.asarray([1 + 2j], np.complex64),
            "numpy scalar": np.float32(0.25),
            "python": [3, 0.5, True],
            "odd/name é": jnp.zeros(()),
            "none": None,
            "large": jnp.arange(300_000, dtype=jnp.float32),
        }
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(0, state)
            assert_same_leaves(checkpointer.restore(like=state).state, state)

    def test_arrays_keep_their_commitment_to_a_device(self, tmp_path: Path) -> None:
        device = jax.devices()[-1]
        state = {"free": jnp.ones(3), "bound": jax.device_put(jnp.ones(3), device)}
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(0, state)
            restored = checkpointer.restore(like=state).state
        assert not restored["free"].committed
        assert restored["bound"].committed
        assert restored["bound"].sharding == state["bound"].sharding

    def test_a_background_save_holds_the_state_of_the_call(self, tmp_path: Path) -> None:
        host = np.zeros(1000, np.float32)
        device = jnp.arange(500_000, dtype=jnp.float32)
        expected = np.asarray(device).copy()
        overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
        with Checkpointer(tmp_path, background=True) as checkpointer:
            checkpointer.save(0, {"host": host, "device": device})
            host[:] = 1
            overwrite(device).block_until_ready()
            like = {"host": host, "device": np.empty_like(expected)}
            restored = checkpointer.restore(like=like).state
        np.testing.assert_array_equal(restored["host"], 0)
        np.testing.assert_array_equal(restored["device"], expected)

    @settings(max_examples=50)
    @given(
        st.recursive(
            st.integers(),
            lambda node: st.dictionaries(st.text("abc", min_size=1), node, min_size=1),
        ).filter(lambda tree: isinstance(tree, dict))
    )
    def test_names_give_the_tree_back(self, tree: dict[str, Any]) -> None:
        assert nested(named_leaves(tree)) == tree


class TestSave:
    def test_the_newest_checkpoints_are_kept(self, tmp_path: Path) -> None:
        save_steps(tmp_path, *range(7))
        assert CheckpointWatcher(tmp_path).steps() == (2, 3, 4, 5, 6)

    def test_a_relative_directory_is_taken_from_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        save_steps(Path("run"), 1)
        assert CheckpointWatcher("run").load(1).step == 1
        assert (tmp_path / "run" / "1").is_dir()

    def test_fewer_than_five_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="max_to_keep is 4, but must be at least 5"):
            Checkpointer(tmp_path / "run", max_to_keep=4)
        assert not (tmp_path / "run").exists()

    def test_a_resumed_run_overwrites_its_former_future(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 20, 30)
        with Checkpointer(tmp_path) as checkpointer:
            state = checkpointer.restore(10, like=SMALL).state
            state["model"]["kernel"] += 1
            checkpointer.save(20, state)
            assert checkpointer.steps() == (10, 20)
            restored = checkpointer.restore(like=SMALL)
        assert restored.step == 20
        np.testing.assert_array_equal(restored.state["model"]["kernel"], [[1, 2, 3], [4, 5, 6]])

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({"model": {"name": "resnet"}}, "leaf model/name cannot be saved: dtype <U6"),
            ({"model": np.zeros((0, 3))}, r"leaf model cannot be saved.*shape \[0, 3\]"),
            ({}, "expected a container with at least one array, got dict"),
            (np.zeros(3), "expected a container with at least one array, got ndarray"),
            ({"a.b": 1, "a": {"b": 2}}, "two places of the tree are named 'a.b'"),
            (OrderedDict([(1, 1), ("1", {"b": 2})]), "two places of the tree are named '1'"),
        ],
    )
    def test_states_that_cannot_be_stored_are_refused(
        self, tmp_path: Path, state: Any, message: str
    ) -> None:
        save_steps(tmp_path, 1)
        with Checkpointer(tmp_path) as checkpointer:
            with pytest.raises(InvalidInputError, match=message):
                checkpointer.save(1, state)
            assert checkpointer.steps() == (1,)

    @pytest.mark.parametrize(
        ("bank", "message"),
        [
            ({"step": np.int64(3)}, "`bank` cannot be written as JSON"),
            ({"loss": math.nan}, "`bank` cannot be written as JSON"),
            ({"shape": (1, 2)}, "`bank` would come back from JSON as"),
            ({3: "x"}, "`bank` would come back from JSON as"),
        ],
    )
    def test_json_that_would_change_is_refused(
        self, tmp_path: Path, bank: dict[Any, Any], message: str
    ) -> None:
        with (
            Checkpointer(tmp_path) as checkpointer,
            pytest.raises(InvalidInputError, match=message),
        ):
            checkpointer.save(1, SMALL, bank=bank)

    @pytest.mark.parametrize("step", [-1, True])
    def test_impossible_steps_are_refused(self, tmp_path: Path, step: int) -> None:
        with (
            Checkpointer(tmp_path) as checkpointer,
            pytest.raises(InvalidInputError, match="must be an integer of at least 0"),
        ):
            checkpointer.save(step, SMALL)

    def test_a_failed_background_save_is_reported_by_wait(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).random(4_000_000)
        with Checkpointer(tmp_path, background=True) as checkpointer:
            checkpointer.save(1, {"model": noise})
            # A save ends with the renaming of a directory to its step, which is now impossible.
            (tmp_path / "1").mkdir()
            with pytest.raises(FileExistsError, match="Cannot rename"):
                checkpointer.wait()

    def test_a_background_save_that_cannot_begin_fails_at_once(self, tmp_path: Path) -> None:
        directory = tmp_path / "run"
        with Checkpointer(directory, background=True) as checkpointer:
            directory.rmdir()
            directory.write_text("in the way")
            with pytest.raises(OSError, match=str(directory)):
                checkpointer.save(1, SMALL)


class TestRestore:
    def test_a_directory_without_finished_steps_is_named(self, tmp_path: Path) -> None:
        with Checkpointer(tmp_path) as checkpointer:
            (tmp_path / "notes.txt").write_text("")
            with pytest.raises(CheckpointNotFoundError, match=rf"{tmp_path} holds notes.txt"):
                checkpointer.restore(like=SMALL)

    def test_a_missing_step_lists_what_is_there(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 20)
        with (
            Checkpointer(tmp_path) as checkpointer,
            pytest.raises(CheckpointNotFoundError, match=r"step 15: .* holds 10, 20"),
        ):
            checkpointer.restore(15, like=SMALL)

    @pytest.mark.parametrize(
        ("like", "message"),
        [
            (
                {"model": {"kernel": np.zeros((2, 4), np.float32)}},
                r"different: model/kernel is float32\[2, 3\], expected float32\[2, 4\]",
            ),
            (
                {"model": {"kernel": np.zeros((2, 3))}},
                r"different: model/kernel is float32\[2, 3\], expected float64\[2, 3\]",
            ),
            (
                {"model": {"bias": np.zeros(3)}},
                "missing: model/bias; not expected: model/kernel",
            ),
        ],
    )
    def test_another_structure_is_refused(self, tmp_path: Path, like: Any, message: str) -> None:
        save_steps(tmp_path, 1)
        with (
            Checkpointer(tmp_path) as checkpointer,
            pytest.raises(InvalidInputError, match=message),
        ):
            checkpointer.restore(like=like)


class TestWatching:
    def test_a_missing_directory_stays_missing(self, tmp_path: Path) -> None:
        directory = tmp_path / "not yet"
        watcher = CheckpointWatcher(directory)
        assert watcher.steps() == ()
        assert watcher.latest_step() is None
        assert watcher.wait_for(timeout_s=0) is None
        assert watcher.load_newest() is None
        with pytest.raises(CheckpointNotFoundError, match=f"{directory} does not exist"):
            watcher.load(3)
        assert not directory.exists()

    def test_a_watcher_sees_the_directory_appear(self, tmp_path: Path) -> None:
        watcher = CheckpointWatcher(tmp_path / "run")
        seen: list[int | None] = []
        thread = threading.Thread(target=lambda: seen.append(watcher.wait_for(timeout_s=60)))
        thread.start()
        save_steps(tmp_path / "run", 4)
        thread.join(timeout=60)
        assert seen == [4]

    def test_waiting_returns_the_newest_step_above_the_last(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 20, 30)
        watcher = CheckpointWatcher(tmp_path)
        assert watcher.wait_for(10, timeout_s=0) == 30
        assert watcher.wait_for(30, timeout_s=0) is None

    def test_waiting_ends_when_stopped(self, tmp_path: Path) -> None:
        watcher = CheckpointWatcher(tmp_path)
        stop = threading.Event()
        seen: list[int | None] = []

        def wait() -> None:
            seen.append(watcher.wait_for(timeout_s=math.inf, stop=stop))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        stop.set()
        thread.join(timeout=60)
        assert seen == [None]

    def test_an_exact_step_is_waited_for_until_the_trainer_is_past_it(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 30)
        watcher = CheckpointWatcher(tmp_path)
        assert watcher.wait_for_step(10, timeout_s=0) == 10
        assert watcher.wait_for_step(40, timeout_s=0) is None
        with pytest.raises(CheckpointNotFoundError, match=r"step 20: .* holds 10, 30"):
            watcher.wait_for_step(20, timeout_s=60)

    def test_a_killed_save_is_never_seen(self, tmp_path: Path) -> None:
        killed = run_python(
            """
            import os, pathlib, signal, sys
            import numpy as np
            from carls_jax.checkpoints import Checkpointer
            checkpointer = Checkpointer(sys.argv[1], background=True)
            checkpointer.save(1, {"model": {"kernel": np.ones(3)}})
            checkpointer.wait()
            noise = np.random.default_rng(0).random(8_000_000)
            checkpointer.save(2, {"model": {"kernel": noise}})
            while not list(pathlib.Path(sys.argv[1]).glob("2.*")):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
            """.replace("\n            ", "\n"),
            tmp_path,
        )
        assert killed.returncode == -9, killed.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.orbax-checkpoint-tmp"]
        watcher = CheckpointWatcher(tmp_path)
        assert watcher.steps() == (1,)
        with pytest.raises(CheckpointNotFoundError, match=r"holds 1, 2\.orbax-checkpoint-tmp"):
            watcher.load(2)
        save_steps(tmp_path, 3)
        assert watcher.steps() == (1, 3)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


class TestLoading:
    def test_predictions_equal_the_trainers(self, tmp_path: Path) -> None:
        model = trained(seed=0)
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(5, train_state(model))
        checkpoint = CheckpointWatcher(tmp_path).load(5)
        copy = into(Classifier(seed=1), checkpoint.variables)
        np.testing.assert_array_equal(predictions(copy), predictions(model))

    def test_without_batch_statistics_predictions_differ(self, tmp_path: Path) -> None:
        model = trained(seed=0)
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(5, train_state(model))
        checkpoint = CheckpointWatcher(tmp_path).load(
            5, select=lambda path: path[-1] in ("kernel", "bias", "scale")
        )
        parameters = checkpoint.variables["model"]
        copy = Classifier(seed=1)
        with pytest.raises(InvalidInputError, match=r"missing: .*norm/mean"):
            into(copy, parameters)
        nnx.update(copy, into(nnx.state(copy, nnx.Param), parameters))
        assert np.abs(predictions(copy) - predictions(model)).max() > 0.01

    def test_linen_variables_are_used_as_they_are(self, tmp_path: Path) -> None:
        model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True)])
        x = jnp.ones((2, 4))
        variables = model.init(jax.random.key(0), x)
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, {"model": variables})
        loaded = CheckpointWatcher(tmp_path).load(1).variables
        expected = np.asarray(model.apply(variables, x))
        np.testing.assert_array_equal(np.asarray(model.apply(loaded, x)), expected)
        filled = into(jax.eval_shape(lambda: variables), loaded)
        assert_same_leaves(filled, variables)

    def test_only_the_model_is_read(self, tmp_path: Path) -> None:
        state = {"model": {"w": np.ones(10)}, "ema": {"w": np.zeros(20)}, "optimizer": np.ones(30)}
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, state, bank={"uuid": "b1"}, extra={"seed": 3})
        watcher = CheckpointWatcher(tmp_path)
        checkpoint = watcher.load(1)
        assert checkpoint == HostCheckpoint(
            1, {"w": pytest.approx(np.ones(10))}, {"uuid": "b1"}, {"seed": 3}, bytes_read=80
        )
        averages = watcher.load(1, select=lambda path: path[0] == "ema")
        assert averages.bytes_read == 160
        np.testing.assert_array_equal(averages.variables["ema"]["w"], np.zeros(20))

    def test_variables_are_copied_into_a_model(self, tmp_path: Path) -> None:
        variables = {"kernel": np.zeros((256, 256), np.float32)}
        model = into({"kernel": jnp.ones((256, 256))}, variables)
        variables["kernel"][:] = 1
        np.testing.assert_array_equal(model["kernel"], 0)

    def test_a_state_without_a_model_asks_for_a_selection(self, tmp_path: Path) -> None:
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, {"params": np.ones(3)})
        watcher = CheckpointWatcher(tmp_path)
        with pytest.raises(InvalidInputError, match=r"the state holds \['params'\].*`select`"):
            watcher.load(1)
        assert watcher.load(1, select=lambda path: True).bytes_read == 24

    def test_bank_and_extra_are_read_without_the_arrays(self, tmp_path: Path) -> None:
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(1, SMALL, bank={"uuid": "b1"}, extra={"seed": 3})
        shutil.rmtree(tmp_path / "1" / "state")
        about = CheckpointWatcher(tmp_path).about(1)
        assert (about.bank, about.extra) == ({"uuid": "b1"}, {"seed": 3})
        assert about.leaves == {("model", "kernel"): ("float32", (2, 3))}

    def test_a_step_deleted_while_it_is_read_gives_way_to_the_newer(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)
        read: list[int] = []

        def delete_and_select(path: tuple[str, ...]) -> bool:
            # Called between the list of leaves and the arrays.
            if not read:
                shutil.rmtree(tmp_path / "10")
                save_steps(tmp_path, 20)
            read.append(1)
            return True

        watcher = CheckpointWatcher(tmp_path)
        checkpoint = watcher.load_newest(select=delete_and_select)
        assert checkpoint is not None
        assert checkpoint.step == 20
        assert len(read) == 2

    def test_loading_an_exact_step_reports_its_deletion(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)

        def delete_and_select(path: tuple[str, ...]) -> bool:
            shutil.rmtree(tmp_path / "10")
            return True

        with pytest.raises(CheckpointNotFoundError, match=r"step 10: .* holds nothing"):
            CheckpointWatcher(tmp_path).load(10, select=delete_and_select)

    def test_a_damaged_checkpoint_is_not_taken_for_a_deleted_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("carls_jax.checkpoints.watcher._DELETION_TIMEOUT_S", 0)
        save_steps(tmp_path, 10)
        shutil.rmtree(tmp_path / "10" / "state" / "d")
        with pytest.raises(ValueError, match="NOT_FOUND"):
            CheckpointWatcher(tmp_path).load_newest()

    def test_a_checkpoint_of_another_program_is_refused(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)
        shutil.rmtree(tmp_path / "10" / "about")
        with pytest.raises(InvalidInputError, match="has no item 'about'"):
            read_about(epath.Path(tmp_path / "10"))


class TestProcesses:
    def test_eight_devices_write_and_one_reads(self, tmp_path: Path) -> None:
        saved = run_python(
            """
            import sys
            import jax, numpy as np
            from jax.sharding import NamedSharding, PartitionSpec
            from carls_jax.checkpoints import Checkpointer
            mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
            rows = NamedSharding(mesh, PartitionSpec("data"))
            columns = NamedSharding(mesh, PartitionSpec(None, "data"))
            everywhere = NamedSharding(mesh, PartitionSpec())
            kernel = np.arange(128, dtype=np.float32).reshape(16, 8)
            state = {
                "model": {
                    "kernel": jax.device_put(kernel, rows),
                    "bias": jax.device_put(np.arange(4), everywhere),
                },
                "keys": jax.device_put(jax.random.split(jax.random.key(0), 8), rows),
            }
            like = dict(state)
            like["model"] = dict(state["model"])
            like["model"]["kernel"] = jax.ShapeDtypeStruct(
                (16, 8), np.float32, sharding=columns
            )
            with Checkpointer(sys.argv[1]) as checkpointer:
                checkpointer.save(3, state)
                restored = checkpointer.restore(like=like).state
            assert restored["model"]["kernel"].sharding == columns
            assert restored["model"]["bias"].sharding == everywhere
            assert restored["keys"].sharding.is_equivalent_to(rows, 1)
            np.testing.assert_array_equal(restored["model"]["kernel"], kernel)
            """.replace("\n            ", "\n"),
            tmp_path,
            XLA_FLAGS="--xla_force_host_platform_device_count=8",
        )
        assert saved.returncode == 0, saved.stderr
        assert jax.device_count() < 8
        checkpoint = CheckpointWatcher(tmp_path).load(3)
        kernel = checkpoint.variables["kernel"]
        assert type(kernel) is np.ndarray
        np.testing.assert_array_equal(kernel, np.arange(128).reshape(16, 8))
        np.testing.assert_array_equal(checkpoint.variables["bias"], np.arange(4))
        like = {
            "model": {"kernel": jnp.zeros((16, 8)), "bias": np.zeros(4, np.int32)},
            "keys": jax.random.split(jax.random.key(9), 8),
        }
        with Checkpointer(tmp_path) as checkpointer:
            keys = checkpointer.restore(like=like).state["keys"]
        expected = jax.random.split(jax.random.key(0), 8)
        np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected))

    def test_importing_and_watching_takes_no_accelerator(self, tmp_path: Path) -> None:
        script = (
            "import sys; from carls_jax.checkpoints import CheckpointWatcher;"
            "assert CheckpointWatcher(sys.argv[1]).steps() == (1,)"
        )
        save_steps(tmp_path, 1)
        # JAX would fail as soon as it looked for its devices.
        finished = run_python(script, tmp_path, JAX_PLATFORMS="no_such_platform")
        assert finished.returncode == 0, finished.stderr
