"""The architecture: who may import whom, and what is public."""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import carls_jax

ROOT = Path(carls_jax.__file__).parent
TESTS = Path(__file__).parent

# From the ground up: each part of the package, and which of those before it it may import.
MAY_IMPORT = {
    "errors": set(),
    "keys": {"errors"},
    "metrics": {"errors"},
    "configs": {"errors"},
    "bank": {"errors", "keys", "metrics"},
    "hooks": {"errors", "keys", "bank"},
    "nn": {"errors", "bank", "hooks"},
    "checkpoints": {"errors"},
    "data": {"errors"},
    "makers": {"errors", "keys", "metrics", "bank", "checkpoints", "data"},
    "training": {
        *{"errors", "keys", "metrics", "configs", "bank", "hooks", "nn"},
        *{"checkpoints", "data", "makers"},
    },
    "launch": {
        *{"errors", "metrics", "configs", "bank", "checkpoints", "makers", "training"},
    },
    "snapshots": {"errors", "bank", "launch"},
    "bench": {
        *{"errors", "keys", "metrics", "configs", "bank", "hooks", "nn", "checkpoints", "data"},
        *{"makers", "training", "launch"},
    },
    "commands": {"errors", "bank", "launch", "bench"},
    "cli": {"errors", "metrics", "configs", "snapshots", "commands", "bench"},
}
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
# Tests of more than a module: of how several work together, or of what a library does.
ABOUT_MORE = {
    "bank/test_concurrency.py",
    "bank/test_snapshot_instant.py",
    "hooks/test_pitfalls.py",
    "hooks/test_remote.py",
    "launch/test_signals.py",
    "test_architecture.py",
    "test_readme.py",
    "test_security.py",
}

PUBLIC = [
    "Bank",
    "Context",
    "Experiment",
    "Field",
    "Known",
    "Lazy",
    "Limit",
    "LocalBank",
    "Lookup",
    "Push",
    "Rows",
    "Session",
    "SessionConfig",
    "Table",
    "TableSpec",
    "Task",
    "Tls",
    "TrainerConfig",
    "Update",
    "WhenAway",
    "asynchronous",
    "connect",
    "fit",
    "init",
    "lockstep",
    "maker",
    "open_snapshot",
    "optimizer",
    "outlast",
    "predictor",
    "schedule",
    "session",
]


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if "_pb2" not in path.name]


def part_of(path: Path) -> str:
    """Returns which part of the package a module belongs to, such as "bank"."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, only_when_loaded: bool = False) -> Iterator[str]:
    """Yields the modules that a module imports, with functions' own imports or without."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        is_later = isinstance(node, ast.FunctionDef) or _is_for_types(node)
        if not (only_when_loaded and is_later):
            yield from imports(node, only_when_loaded=only_when_loaded)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def test_every_part_has_its_rule():
    assert {part_of(path) for path in modules()} - {"__init__"} == set(MAY_IMPORT)


def test_imports_run_one_way():
    order = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        assert all(order.index(one) < order.index(part) for one in allowed)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may_know(part):
    for path in modules():
        if part_of(path) == part:
            names = {name.split(".")[1] for name in imports(parsed(path)) if _is_ours(name)}
            assert names - {part} <= MAY_IMPORT[part] & names, path


def _is_ours(name: str) -> bool:
    words = name.split(".")
    return words[0] == "carls_jax" and len(words) > 1 and words[1] in MAY_IMPORT


# A bank server starts fast and leaves accelerators alone.
@pytest.mark.parametrize("part", ["errors", "keys", "metrics", "configs", "bank"])
def test_what_a_bank_server_needs_imports_no_jax_when_it_is_loaded(part):
    for path in modules():
        if part_of(path) == part:
            loaded = {name.split(".")[0] for name in imports(parsed(path), only_when_loaded=True)}
            assert not loaded & {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}, path


def test_one_file_alone_calls_host_callbacks():
    callbacks = {"pure_callback", "io_callback"}
    found = {
        path.relative_to(ROOT).as_posix()
        for path in modules()
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Attribute) and node.attr in callbacks)
        or (isinstance(node, ast.Name) and node.id in callbacks)
        or (isinstance(node, ast.alias) and node.name in callbacks)
    }
    assert found == {"hooks/callbacks.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lists_its_public_names_and_does_nothing_else(package):
    tree = parsed(ROOT / package / "__init__.py")
    statements = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    docstring, *rest = statements
    assert isinstance(docstring, ast.Expr)
    constants = {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in rest}
    imported = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    ]
    assert sorted(imported) == sorted(constants.get("__all__", []))  # ruff sorts the list


def test_the_public_names_are_these():
    assert carls_jax.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(carls_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = carls_jax.nothing


def test_the_public_names_that_are_found_are_those_that_type_checkers_see():
    tree = parsed(ROOT / "__init__.py")
    declared = {
        alias.asname or alias.name: node.module.removeprefix("carls_jax.")
        for block in tree.body
        if _is_for_types(block)
        for node in block.body
        for alias in node.names
    }
    assert set(declared) == set(PUBLIC)
    for name, home in declared.items():
        module = importlib.import_module(f"carls_jax.{home}")
        expected = module.initializers if name == "init" else getattr(module, name)
        assert getattr(carls_jax, name) is expected


def public_objects() -> Iterator[tuple[str, object]]:
    """Yields the public classes and functions of all packages, and the classes' public members."""
    for package in PACKAGES:
        module = importlib.import_module(f"carls_jax.{package}")
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if isinstance(value, type | types.FunctionType):
                yield f"{package}.{name}", value
            if isinstance(value, type):
                for member in vars(value):
                    attribute = inspect.getattr_static(value, member)
                    kinds = (types.FunctionType, property, classmethod, staticmethod)
                    if not member.startswith("_") and isinstance(attribute, kinds):
                        yield f"{package}.{name}.{member}", getattr(value, member)


def test_every_public_name_has_a_docstring():
    # A dataclass without one is given its signature.
    bare = [
        name
        for name, value in public_objects()
        if not (told := inspect.getdoc(value)) or told.startswith(f"{name.split('.')[-1]}(")
    ]
    assert bare == []


def test_the_tests_mirror_the_package():
    for path in sorted(TESTS.rglob("test_*.py")):
        place = path.relative_to(TESTS)
        if place.parts[0] not in ("contracts", "integration", "properties"):
            module = ROOT / place.with_name(place.name.removeprefix("test_"))
            is_mirror = module.exists() or module.with_suffix("").is_dir()
            assert is_mirror or place.as_posix() in ABOUT_MORE, place
