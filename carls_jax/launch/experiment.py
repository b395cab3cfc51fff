"""`Experiment`: what a researcher writes, as data and functions; and how its file is read."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ml_collections import ConfigDict

from carls_jax.bank import TableSpec
from carls_jax.bank.namespaces import check_namespace
from carls_jax.configs import override, to_dataclass, unknown
from carls_jax.errors import ConfigError
from carls_jax.launch.program import ROLE_NAME
from carls_jax.makers import Maker
from carls_jax.training.session import Session, SessionConfig


@dataclass(frozen=True)
class Experiment:
    """Holds the parts of an experiment. Every role's process makes it anew.

    Attributes:
      train: The training loop: takes a `Session`, returns the results to keep.
      tables: Tables of the bank.
      makers: The makers, in the order in which they run in lockstep.
      predict: `predict(variables, inputs)`, a jittable function that makers call as `ctx.predict`.
      data: What makers and training loop work on; `ctx.data`.

    Raises:
      ConfigError: Names are used twice, a maker names an unknown table (the nearest one is told),
        or its own name cannot be a process's.
      FieldNotFoundError: A maker writes a field that its table has not.
    """

    train: Callable[[Session], Mapping[str, Any] | None]
    tables: tuple[TableSpec, ...] = ()
    makers: tuple[Maker, ...] = ()
    predict: Callable[[Any, Any], Any] | None = None
    data: Any = None

    def __post_init__(self) -> None:
        _check_distinct("tables", [table.name for table in self.tables])
        _check_distinct("makers", [maker.name for maker in self.makers])
        tables = {table.name: table for table in self.tables}
        for maker in self.makers:
            _check_role_name(maker.name)
            for table in (*maker.reads, *maker.writes):
                if table not in tables:
                    raise ConfigError(unknown(table, tables, where=f"maker {maker.name!r}: tables"))
            for table, fields in maker.writes.items():
                for name in fields:
                    tables[table].field(name)

    def maker(self, name: str) -> Maker:
        """Returns a maker; raises ConfigError, which names the nearest one."""
        makers = {maker.name: maker for maker in self.makers}
        if name not in makers:
            raise ConfigError(unknown(name, makers, where="the experiment's makers"))
        return makers[name]


@dataclass(frozen=True)
class BankConfig:
    """Says which bank a run uses; the section `run.bank`.

    Runs that share a bank take and restore snapshots of all of it: one that resumes puts back the
    others' tables, too, which ends a run that is under way with an error that says so.

    Attributes:
      address: A bank that is served already, as in `connect`. "": the run has one of its own.
      namespace: The run's own part of the bank, see `Bank.namespace`. "": all of it.
    """

    address: str = ""
    namespace: str = ""

    def __post_init__(self) -> None:
        if self.namespace:
            check_namespace(self.namespace)


@dataclass(frozen=True)
class RunConfig:
    """Says how an experiment is run; the section `run` of a config.

    Attributes:
      mode: "processes": bank, makers and trainer each in their own; "inline": all in one.
      seed: Seed of makers' random keys; the experiment may use it too.
      session: How trainer and makers work together.
      bank: Which bank the run uses; what follows is said of one of its own.
      num_shards: Servers that hold the bank.
      transport: How processes reach the bank: "unix" sockets, or "tcp" on the loopback interface.
      journal: What changes of a served bank outlast, see `carls_jax.LocalBank`.
      num_workers: Workers by maker; 1 for those not named.
    """

    mode: Literal["processes", "inline"] = "processes"
    seed: int = 0
    session: SessionConfig = field(default_factory=SessionConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    num_shards: int = 1
    transport: Literal["unix", "tcp"] = "unix"
    journal: Literal["off", "process", "fsync"] = "process"
    num_workers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.num_shards <= 64:
            raise ConfigError(f"num_shards={self.num_shards}: allowed is 1 to 64")
        for name, count in self.num_workers.items():
            if count < 1:
                raise ConfigError(f"num_workers.{name}={count}: allowed is 1 and more")


@dataclass(frozen=True)
class Loaded:
    """Holds what an experiment's file and the command line say.

    Attributes:
      path: The file.
      overrides: The assignments that were applied.
      config: All values, defaults of `run` included.
      run: The section `run`.
      make_experiment: The file's function.
    """

    path: Path
    overrides: tuple[str, ...]
    config: ConfigDict
    run: RunConfig
    make_experiment: Callable[[ConfigDict], Experiment]

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment, made when it is first asked for: that may load data and use a device.

        Raises:
          ConfigError: The file makes none, or the section `run` does not suit it.
        """
        experiment = self.make_experiment(self.config)
        if not isinstance(experiment, Experiment):
            raise ConfigError(
                f"{self.path}: make_experiment returned {type(experiment).__name__}, not an "
                "Experiment"
            )
        for name, count in self.run.num_workers.items():
            if experiment.maker(name).is_refresh and count > 1:
                raise ConfigError(
                    f"config.run.num_workers.{name}={count}: it refreshes whole tables, so more "
                    "than one would do the same work; write make(ctx, keys) to split it"
                )
        return experiment

    @property
    def num_workers(self) -> dict[str, int]:
        """Workers of each maker, in the makers' order."""
        return {
            maker.name: self.run.num_workers.get(maker.name, 1) for maker in self.experiment.makers
        }


def _check_distinct(kind: str, names: Sequence[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ConfigError(f"{kind} need names of their own: {', '.join(repeated)} is used twice")


def _check_role_name(maker: str) -> None:
    """Checks that a maker can be launched, also where the experiment is run inline now."""
    if not ROLE_NAME.fullmatch(maker) or maker in ("bank", "trainer"):
        raise ConfigError(
            f"maker {maker!r}: its process is called so, beside those of bank and trainer; give "
            "maker(name=...) a letter, then letters, digits or underscores"
        )


def load(path: str | Path, overrides: Iterable[str] = ()) -> Loaded:
    """Reads an experiment's file.

    The file defines `get_config()`, which returns a `ConfigDict`, and `make_experiment(config)`,
    which returns an `Experiment`. Of the config's sections, `run` holds the fields of `RunConfig`;
    the others are the experiment's own.

    Args:
      path: The file.
      overrides: Such as "run.seed=3"; see `configs.override`.

    Raises:
      ConfigError: The file is not there, lacks a function, or a value is wrong.
    """
    module = _import_file(Path(path))
    config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict"
        )
    config = ConfigDict(config).unlock()
    overrides = tuple(overrides)
    override(config, overrides, sections=("run",))
    run = to_dataclass(RunConfig, config.get("run", {}), where="config.run")
    config.run = ConfigDict(asdict(run))
    return Loaded(Path(path).resolve(), overrides, config, run, module.make_experiment)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"--config={path}: no such file")
    spec = importlib.util.spec_from_file_location(f"carls_experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: a Python file ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Files beside the config can be imported by it, as in a script.
    if str(path.parent.resolve()) not in sys.path:
        sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for name in ("get_config", "make_experiment"):
        if not callable(getattr(module, name, None)):
            raise ConfigError(f"{path} defines no function {name}()")
    return module
