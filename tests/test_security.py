"""What `SECURITY.md` promises of the package as a whole."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import carls_jax
from carls_jax.bank import BankServer, Field, LocalBank, RemoteBank, TableSpec
from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank.address import parse_address
from carls_jax.bank.interface import PROTOCOL_VERSION
from carls_jax.bank.transport import GrpcTransport
from carls_jax.errors import CarlsError

ROOT = Path(carls_jax.__file__).parent
SPEC = TableSpec("t", {"x": Field()})

# Modules that turn bytes into code, or hold those that do.
UNSAFE_MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle"}
UNSAFE_MODULES |= {"shelve", "yaml", "torch"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {"system", "popen", "mktemp", "fromfile", "memmap"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {one.arg: ast.unparse(one.value) for one in call.keywords}


def test_nothing_unpickles():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            if UNSAFE_MODULES & {name.split(".")[0] for name in names}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_no_data_becomes_code():
    found = [
        place
        for place, call in calls()
        if (isinstance(call.func, ast.Name) and call.func.id in UNSAFE_CALLS)
        or (isinstance(call.func, ast.Attribute) and call.func.attr in UNSAFE_METHODS)
        or keywords(call).get("shell", "False") != "False"
    ]
    # The messages that protoc has made.
    assert [one for one in found if "_pb2.py" not in one] == []


def test_arrays_are_read_and_written_without_objects():
    num_read = 0
    for place, call in calls():
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func) in (
            *("np.load", "numpy.load", "np.save", "np.lib.format.read_array"),
            *("np.lib.format.write_array", "numpy.lib.format.read_array"),
        ):
            num_read += 1
            assert keywords(call).get("allow_pickle") == "False", place
    assert num_read  # the experiments' and benchmarks' data


OUTSIDE = [
    *("..", ".", "../outside", "../../outside", "/tmp/outside", "a/../../outside", "~/x", "$HOME"),
    *("a/b", "file:///tmp/x", "gs://x", "a\0b", "a\nb", "%2e%2e", "..\\x", "０" * 4, " "),
    *("0" * 31 + "/", "../" * 10 + "00"),
]
# These are labels.
NO_UUIDS = ["-rf", "0" * 33, "A" * 32, "g" * 32]


def everything(directory: Path, *, but: Path) -> dict[str, bytes | None]:
    """Returns what is in a directory, but for what is in another one."""
    return {
        str(one): one.read_bytes() if one.is_file() else None
        for one in sorted(directory.rglob("*"))
        if one != but and but not in one.parents
    }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, RemoteBank]]:
    """Gives a bank's root, beside which are other files, and a client of the bank."""
    root = tmp_path / "root"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "manifest.json").write_text("precious")
    with (
        LocalBank(root, bank_id="b", max_snapshots=2) as bank,
        BankServer(bank, f"unix:{tmp_path}/s") as server,
        RemoteBank(server.address, source="me") as client,
    ):
        client.table(SPEC).update([1, 2], {"x": np.ones(2)})
        yield root, client


def test_no_name_leads_out_of_the_root(site: tuple[Path, RemoteBank]):
    root, client = site
    transport = GrpcTransport(parse_address(f"unix:{root.parent}/s"))
    taken = client.snapshot("s")
    before = everything(root.parent, but=root)
    inside = {str(one) for one in root.rglob("*")}
    requests = [pb.Request(take_snapshot=pb.TakeSnapshot(label=name)) for name in OUTSIDE]
    for name in (*OUTSIDE, *NO_UUIDS):
        # A client of somebody else's need not check what ours does.
        other = pb.Snapshot(bank_id="b", label="s", uuid=name)
        stranger = pb.Snapshot(bank_id=name, label="s", uuid=taken.uuid)
        requests += [
            pb.Request(take_snapshot=pb.TakeSnapshot(label="s", uuid=name)),
            pb.Request(restore=pb.Restore(name=name)),
            pb.Request(restore=pb.Restore(snapshot=other)),
            pb.Request(restore=pb.Restore(snapshot=stranger)),
        ]
    for request in requests:
        request.protocol_version = PROTOCOL_VERSION
        with pytest.raises(CarlsError):
            transport.call(request, {}, timeout_s=60)
    assert everything(root.parent, but=root) == before
    assert {str(one) for one in root.rglob("*")} == inside
    assert client.snapshots() == [taken]
    transport.close()


def test_names_that_may_have_slashes_are_no_paths(site: tuple[Path, RemoteBank]):
    root, client = site
    before = everything(root.parent, but=root)
    for name in ("../outside", "a/../../outside", "..", "a/.."):
        table = client.table(TableSpec(name, {name: Field()}))
        table.update([1], {name: np.ones(1)}, source=name, clock=name, step=1)
    client.snapshot("s")
    client.restore("s")
    assert client.table("../outside").lookup([1])["../outside"] == 1
    assert everything(root.parent, but=root) == before
    assert not [one for one in root.rglob("*") if re.search("outside", one.name)]


def test_a_link_in_the_root_is_not_followed_by_what_removes(site: tuple[Path, RemoteBank]):
    root, client = site
    shard = root / "snapshots" / "shard-00000"
    client.snapshot("first")
    (taken,) = client.snapshots()
    outside = root.parent / "outside"
    # A whole snapshot outside, which retention would remove, and something else.
    moved = outside / taken.uuid
    (shard / taken.uuid).rename(moved)
    (shard / taken.uuid).symlink_to(moved)
    (shard / ("0" * 32)).symlink_to(outside)
    before = everything(root.parent, but=root)
    for number in range(4):
        client.snapshot(f"s{number}")
    assert [one.label for one in client.snapshots()] == ["s2", "s3"]
    assert everything(root.parent, but=root) == before


def rows_of_bounds() -> list[tuple[str, str]]:
    """Returns the bounds in `SECURITY.md`, each with the constant that it is."""
    text = (ROOT.parent / "SECURITY.md").read_text()
    return re.findall(r"^\|[^|]+\| ([0-9,]+) \| `([a-z_]+\.[A-Z_]+)`", text, re.MULTILINE)


def test_the_table_of_bounds_is_true():
    rows = rows_of_bounds()
    assert len(rows) > 30
    for number, place in rows:
        module, name = place.split(".")
        bound = getattr(importlib.import_module(f"carls_jax.bank.{module}"), name)
        assert bound == int(number.replace(",", "")), place


def test_the_tests_that_are_named_are_there():
    text = (ROOT.parent / "SECURITY.md").read_text().partition("## Tests")[2]
    names = re.findall(r"`(?:tests/)?(?:[a-z]+/)?(test_[a-z]+\.py)`", text)
    assert len(names) == 10
    assert all(list(ROOT.parent.glob(f"tests/**/{name}")) for name in names)
