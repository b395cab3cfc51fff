"""Which commands and options `carls-jax snapshots`, `inspect` and `diff` have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from carls_jax.snapshots import commands

# Adds the command that is called like the function that it runs.
Add = Callable[..., argparse.ArgumentParser]

_SNAPSHOT = "its UUID, or its label, of which the newest is taken"
_NEWEST = f"{_SNAPSHOT} (default: the newest of all)"


def add_commands(subparsers: Any, add: Add) -> None:
    """Declares all commands of this package."""
    help = "List, check, restore, export and remove the snapshots of a bank."
    parser = subparsers.add_parser(
        "snapshots",
        help=help,
        description=help,
        epilog="carls-jax snapshots COMMAND --help tells the options of a command.\n"
        "For example: carls-jax snapshots list --root runs/a",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for declare in (_add_list, _add_verify, _add_restore, _add_export, _add_compact, _add_release):
        declare(below, add)
    parser.commands = below.choices
    _add_inspect(subparsers, add)
    _add_diff(subparsers, add)


def _add_list(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.list_,
        "List a bank's snapshots, oldest first.",
        more="Of directories it also tells what the snapshots take on disk, who has pinned them, "
        "and\nwhich are incomplete, since not all shards have them.",
    )
    _add_place(parser)


def _add_verify(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.verify,
        "Read snapshots whole, compare all checksums, and tell which files are damaged.",
        more="The exit status is 1 if anything is damaged.",
    )
    parser.add_argument("snapshot", nargs="?", help=f"{_SNAPSHOT} (default: all)")
    _add_place(parser)


def _add_restore(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.restore,
        "Put a bank back to a snapshot, or onto another number of shards.",
        more="A bank that is served is put back at once:\n"
        "  carls-jax snapshots restore step-100 --address unix:/tmp/bank.sock\n"
        "One that is stopped is written into new directories, one for each new shard, from which\n"
        "servers then start; the old directories stay as they are:\n"
        "  carls-jax snapshots restore step-100 --root banks/old --to banks/0 --to banks/1\n"
        "  carls-jax bank --root banks/0 --shard 0/2 --bank-id ID --address ...",
    )
    parser.add_argument("snapshot", help=_SNAPSHOT)
    _add_place(parser)
    parser.add_argument(
        "--to",
        action="append",
        type=Path,
        metavar="DIRECTORY",
        help="with --root: an empty or new directory; one for each new shard, in order",
    )


def _add_export(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.export,
        "Write a snapshot as a .npz file, which numpy.load reads.",
        more="carls_jax/snapshots/exporting.py tells the names of the arrays. An older file stays "
        "as it is\nuntil the new one is whole.",
    )
    parser.add_argument("file", type=Path, help="file to write, such as bank.npz")
    parser.add_argument("--snapshot", help=_NEWEST)
    parser.add_argument(
        "--table", action="append", metavar="NAME", help="only this table; may be repeated"
    )
    _add_root(parser, required=True)


def _add_compact(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.compact,
        "Remove old, incomplete and half-written snapshots of a bank that is stopped.",
        more="The newest stays, and so does what is pinned. A bank that is served removes old "
        "snapshots\nby itself.",
    )
    parser.add_argument(
        "--keep", type=int, default=10, metavar="N", help="how many stay (default: %(default)s)"
    )
    _add_root(parser, required=True)


def _add_release(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.release,
        "Let go of all snapshots that an owner has pinned, such as a run that was deleted.",
    )
    parser.add_argument("owner", help="as `carls-jax snapshots list` tells it")
    _add_place(parser)


def _add_inspect(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.inspect,
        "Tell what a table is and how many rows it has, or what one row holds.",
        more="For example: carls-jax inspect nodes --key 7 --root runs/a",
    )
    parser.add_argument("table", help="name of the table")
    parser.add_argument("--key", help="key of a row, to be told who wrote what of it, and when")
    where = _add_place(parser)
    where.add_argument("--workdir", type=Path, help="directory of a run; its bank may be stopped")


def _add_diff(subparsers: Any, add: Add) -> None:
    parser = add(
        subparsers,
        commands.diff,
        "Tell in what two snapshots differ.",
        more="The exit status is 0 if they are equal, 1 if they differ, 2 if in trouble.\n"
        "For example: carls-jax diff runs/a@step-100 runs/a@step-200",
    )
    place = "directory of a bank, as for --root elsewhere, whose newest snapshot is taken; "
    more = "DIRECTORY@SNAPSHOT, for another one; or a file that was exported"
    parser.add_argument("a", metavar="A", help=place + more)
    parser.add_argument("b", metavar="B", help="the same")


def _add_place(parser: argparse.ArgumentParser) -> Any:
    where = parser.add_mutually_exclusive_group(required=True)
    _add_root(where)
    where.add_argument("--address", help="address of a bank that is served")
    return where


def _add_root(parser: Any, **options: Any) -> None:
    parser.add_argument(
        "--root",
        action="append",
        type=Path,
        metavar="DIRECTORY",
        help="directory of a bank, which may be in use; of one of several shards, each of theirs, "
        "in order, or one that holds all of them, such as a run's work directory",
        **options,
    )
