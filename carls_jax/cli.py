"""The command `carls-jax`: which commands and options it has, and how its errors are told."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from carls_jax import commands
from carls_jax.bench import BENCHMARKS
from carls_jax.configs import unknown
from carls_jax.errors import CarlsError
from carls_jax.metrics import installed_version
from carls_jax.snapshots.options import add_commands as add_snapshots

_Subparsers = argparse._SubParsersAction  # argparse has no public name for it

_CONFIG_PREFIX = "--config."
_OVERRIDES = """\
Values of the config are set by --config.NAME=VALUE, such as --config.run.seed=3; those of its
section `run` are the fields of carls_jax.launch.experiment.RunConfig."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors of ours are one line, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("carls_jax").setLevel(logging.INFO)
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [one for one in arguments if one.startswith(_CONFIG_PREFIX)]
    parser = _parser()
    options = parser.parse_args([one for one in arguments if one not in overrides])
    if overrides and not hasattr(options, "config"):
        parser.error(f"{overrides[0]}: {options.name} reads no config")
    options.overrides = [one.removeprefix(_CONFIG_PREFIX) for one in overrides]
    try:
        return options.run(options)
    except CarlsError as error:
        place = _place(error, getattr(options, "config", None))
        message = f"{type(error).__name__}: {error}{place}"
    except KeyboardInterrupt:
        print(f"carls-jax {options.name}: interrupted", file=sys.stderr)
        return 130
    print(f"carls-jax {options.name}: {message}", file=sys.stderr)
    return 1


def _place(error: CarlsError, config: Path | None) -> str:
    """Tells which line of the experiment's file has led to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if config and frame.filename == str(config.resolve())]
    return f" ({config}, line {lines[-1]})" if lines else ""


class _Parser(argparse.ArgumentParser):
    """Names the nearest command or option for one that is unknown, as argparse does from 3.14."""

    commands: Mapping[str, argparse.ArgumentParser] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        own, rest = list(args), []
        if self.commands:
            own = list(itertools.takewhile(lambda one: one.startswith("-"), args))
            rest = args[len(own) :]
        known = [name for action in self._actions for name in action.option_strings]
        for one in itertools.takewhile(lambda one: one != "--", own):
            name = one.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(unknown(name, known, where=self.prog))
        if rest and rest[0] not in self.commands:
            self.error(unknown(rest[0], self.commands, where=self.prog))
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="carls-jax",
        description="Trains with knowledge found while training: bank, makers and trainer.",
        epilog="carls-jax COMMAND --help tells the options of a command.",
    )
    version = installed_version("carls-jax") or "(not installed)"
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    subparsers = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    _add_launch(subparsers)
    _add_bank(subparsers)
    _add_make(subparsers)
    _add_train(subparsers)
    _add_status(subparsers)
    _add_explain(subparsers)
    add_snapshots(subparsers, _add)
    _add_sweep(subparsers)
    _add_bench(subparsers)
    parser.commands = subparsers.choices
    return parser


def _add(
    subparsers: _Subparsers, run: Callable[[argparse.Namespace], int], help: str, *, more: str = ""
) -> argparse.ArgumentParser:
    """Adds the command that is called like the function that it runs."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        run.__name__.rstrip("_"),
        help=help,
        description=help,
        epilog=more,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, type=Path, help="file with get_config() and make_experiment()"
    )
    parser.add_argument(
        "--workdir", required=True, type=Path, help="directory of the run; made if it is not there"
    )


def _add_accept_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with the run in the workdir though the config was changed since it began",
    )


def _add_launch(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.launch,
        "Run an experiment on this machine: bank, makers and trainer, until the trainer is done.",
        more="Launched again with the same --workdir, a run goes on from its last checkpoint.\n"
        "--config.run.mode=inline runs all roles in this process, for a debugger.\n\n" + _OVERRIDES,
    )
    _add_config(parser)
    _add_accept_changes(parser)


def _add_bank(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.bank,
        "Serve a knowledge bank, or one shard of it, until SIGTERM or Ctrl-C.",
        more="For a run: carls-jax bank --workdir runs/a\n"
        "For several: carls-jax bank --root banks/a --address 127.0.0.1:4747\n\n"
        "At host:port clients show a token: that of --token-file, of the variable CARLS_TOKEN_FILE "
        "or\nCARLS_TOKEN, or one kept in the file 'token' of the workdir or root.",
    )
    parser.add_argument(
        "--workdir", type=Path, help="directory of a run: where its makers and trainer look for it"
    )
    parser.add_argument(
        "--root", type=Path, help="directory of snapshots and journal (default: in the workdir)"
    )
    parser.add_argument(
        "--address",
        help="unix:/path or host:port, 0 for a free port (default: a socket in the workdir)",
    )
    parser.add_argument(
        "--shard",
        default=(0, 1),
        type=_shard,
        metavar="INDEX/COUNT",
        help="which shard of how many (default: 0/1)",
    )
    parser.add_argument("--bank-id", help="any name, the same for all shards; one shard needs none")
    parser.add_argument(
        "--journal",
        default="process",
        choices=("off", "process", "fsync"),
        help="what acknowledged changes outlast: nothing, a kill (default), or a loss of power",
    )
    parser.add_argument(
        "--max-journal-bytes",
        default=1 << 30,
        type=int,
        metavar="BYTES",
        help="when the journal is longer, a snapshot is taken (default: 1 GiB)",
    )
    parser.add_argument(
        "--max-rows-per-second",
        type=float,
        metavar="ROWS",
        help="what each client may read and write, beside lookups in shared memory (default: all)",
    )
    _add_security(parser)


def _add_security(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file", type=Path, help="file with the token, made if it is not there (host:port)"
    )
    parser.add_argument("--tls-cert", type=Path, help="PEM file: the server's certificate")
    parser.add_argument("--tls-key", type=Path, help="PEM file: its private key")
    parser.add_argument(
        "--tls-client-ca", type=Path, help="PEM file: clients need a certificate that it signed"
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="serve other machines without TLS: others on the way can read the token and all rows",
    )


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: write INDEX/COUNT, such as 0/2")
    return int(index), int(count)


def _add_make(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.make,
        "Run one worker of a maker until SIGTERM or Ctrl-C.",
        more="The run's bank must be served: carls-jax bank --workdir ...\n\n" + _OVERRIDES,
    )
    _add_config(parser)
    parser.add_argument("--maker", required=True, help="name of the maker")
    parser.add_argument("--worker", type=int, default=0, help="which worker (default: 0)")


def _add_train(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.train,
        "Run the training loop of an experiment.",
        more="The run's bank must be served: carls-jax bank --workdir ...\n\n" + _OVERRIDES,
    )
    _add_config(parser)
    _add_accept_changes(parser)


def _add_status(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.status,
        "Show the roles of a run, their last metrics, and what its bank holds.",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="directory of the run")


def _add_explain(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.explain,
        "Tell who wrote each field of a row, when, and from which step.",
        more="For example: carls-jax explain nodes 7 --workdir runs/a",
    )
    parser.add_argument("table", help="name of the table")
    parser.add_argument("key", help="key of the row")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", type=Path, help="directory of a run; its bank may be stopped")
    where.add_argument("--address", help="address of a bank")


def _add_sweep(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.sweep,
        "Run a grid of experiments, one after another, into one table.",
        more="The same command goes on with a sweep that was stopped.\n\n" + _OVERRIDES,
    )
    _add_config(parser)
    parser.add_argument(
        "--set",
        dest="axes",
        action="append",
        required=True,
        metavar="NAME=VALUES",
        help="an axis, such as run.seed=0..4 or run.session.schedule.delay=0,3,once; one for each",
    )


def _add_bench(subparsers: _Subparsers) -> None:
    parser = _add(
        subparsers,
        commands.bench,
        "Measure the bank beside its peers and its limits, and print a table.",
        more="docs/benchmarks/README.md tells what is compared.",
    )
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure")
    parser.add_argument("--json", type=Path, help="file that gets a line of JSON (default: stdout)")
    parser.add_argument("--plot", type=Path, help="file that gets a plot, such as lookup.png")
    parser.add_argument(
        "--quick", action="store_true", help="measure next to nothing, to see that it runs"
    )


if __name__ == "__main__":
    sys.exit(main())
