"""Experiment configs: from an `ml_collections` file and command-line overrides to dataclasses.

`ml_collections.config_flags` reads overrides too, but none of values that are None, a list, or of
several types, and it knows nothing of the names that dataclasses have.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from carls_jax.errors import ConfigError

T = TypeVar("T")


class _Text(str):
    """Is a value from the command line; the place that it is for says what it means."""


def override(
    config: ConfigDict, assignments: Iterable[str], *, sections: Collection[str] = ()
) -> None:
    """Sets values of a config in place.

    A value is a Python literal, `true` or `false`, or else text: whichever fits where it goes.

    Args:
      config: The config.
      assignments: Such as "training.learning_rate=0.1". A value is of the type of the one that it
        replaces.
      sections: Parts of the config, by name, that `to_dataclass` will check: they need not be there
        yet, and their values are of the types that the dataclass says.

    Raises:
      ConfigError: A name is not there (the nearest one is told), or a value does not fit.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r}: write NAME=VALUE")
        *parents, last = path.split(".")
        is_checked_later = bool(parents) and parents[0] in sections
        node, where = config, "config"
        for name in parents:
            node, where = _inner(node, name, where, make=is_checked_later), f"{where}.{name}"
        with node.ignore_type():
            node[last] = _Text(text) if is_checked_later else _replacing(node, last, text, where)


def _inner(node: ConfigDict, name: str, where: str, *, make: bool) -> ConfigDict:
    """Returns a part of a config as a ConfigDict; `make` adds it if it is not there."""
    if name not in node and not make:
        raise ConfigError(unknown(name, node.keys(), where=where))
    inner = node.get(name, ConfigDict())
    if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
        inner = ConfigDict(dataclasses.asdict(inner))
    if not isinstance(inner, ConfigDict):
        raise ConfigError(f"{where}.{name} is a value, so it has nothing below it")
    with node.ignore_type():
        node[name] = inner
    return inner


def _replacing(node: ConfigDict, name: str, text: str, where: str) -> Any:
    """Returns what a text means in the place of a value that has a type."""
    if name not in node:
        raise ConfigError(unknown(name, node.keys(), where=where))
    kind = node.get_type(name)
    if issubclass(kind, ConfigDict):
        raise ConfigError(f"{where}.{name} is a section; set a value in it, {where}.{name}.NAME")
    return _converted(Any if kind is types.NoneType else kind, _Text(text), f"{where}.{name}")


def to_dataclass(kind: type[T], values: Any, *, where: str = "config") -> T:
    """Makes a frozen dataclass, and those nested in it, of a config's values.

    Args:
      kind: The dataclass; its `__post_init__` checks ranges.
      values: The values by field name; fields that are not given keep their defaults. A `kind` is
        returned as it is.
      where: Path of the values in the config, for messages.

    Raises:
      ConfigError: A name is not a field (the nearest one is named), a field without default is not
        given, or a value is of the wrong type or out of range.
    """
    if isinstance(values, kind):
        return values
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}={values!r}: expected the fields of {kind.__name__}")
    fields = {one.name: one for one in dataclasses.fields(kind) if one.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(unknown(name, fields, where=where))
    needed = [name for name, one in fields.items() if _is_needed(one) and name not in values]
    if needed:
        raise ConfigError(f"{where} needs a value for {', '.join(needed)}")
    hints = typing.get_type_hints(kind)
    converted = {
        name: _converted(hints[name], value, f"{where}.{name}") for name, value in values.items()
    }
    try:
        return kind(**converted)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def unknown(name: str, known: Iterable[str], *, where: str) -> str:
    """Returns the message for a name that is not one of those known; it tells the nearest."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
    return f"{where} has no {name!r}; {hint}"


def _converted(hint: Any, value: Any, where: str) -> Any:
    """Returns a config's value as the type that is declared for it."""
    kind, options = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(value, _Text):
        return _first_fit([(hint, meaning) for meaning in _meanings(value)], hint, value, where)
    if _is_dataclass(kind):
        return to_dataclass(kind, value, where=where)
    if kind in (typing.Union, types.UnionType):
        dataclass = next(filter(_is_dataclass, options), None)
        if dataclass and isinstance(value, Mapping):
            return to_dataclass(dataclass, value, where=where)  # its errors name the field
        return _first_fit([(option, value) for option in options], hint, value, where)
    if not _fits(hint, value):
        raise _misfit(hint, value, where)
    if kind in (tuple, list):
        return kind(_elements(hint, value, where))
    if kind is dict and options:
        return {name: _converted(options[1], one, f"{where}.{name}") for name, one in value.items()}
    return float(value) if kind is float else value


def _elements(hint: Any, values: Sequence[Any], where: str) -> list[Any]:
    """Returns the elements of a list or tuple as the types that are declared for them."""
    options = typing.get_args(hint) or (Any, ...)
    if typing.get_origin(hint) is list or options[-1] is ...:
        options = (options[0],) * len(values)
    if len(options) != len(values):
        raise _misfit(hint, values, where)
    return [
        _converted(option, value, f"{where}[{index}]")
        for index, (option, value) in enumerate(zip(options, values, strict=True))
    ]


def _first_fit(choices: Sequence[tuple[Any, Any]], hint: Any, value: Any, where: str) -> Any:
    """Returns the first of several (type, value) in which the value is of the type."""
    for option, meaning in choices:
        try:
            return _converted(option, meaning, where)
        except ConfigError:
            continue
    raise _misfit(hint, value, where)


def _meanings(text: _Text) -> list[Any]:
    literal = {"true": "True", "false": "False"}.get(text, str(text))
    try:
        return [ast.literal_eval(literal), str(text)]
    except (ValueError, SyntaxError):
        return [str(text)]


def _fits(hint: Any, value: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(hint))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind in (tuple, list):
        return isinstance(value, tuple | list)
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _misfit(hint: Any, value: Any, where: str) -> ConfigError:
    return ConfigError(f"{where}={value!r}: expected {_name_of(hint)}")


def _name_of(hint: Any) -> str:
    """Puts a type into words, such as "int, 'once' or 'never'"."""
    if typing.get_origin(hint) is typing.Literal:
        names = [repr(one) for one in typing.get_args(hint)]
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        names = [_name_of(option) for option in typing.get_args(hint)]
    elif hint is types.NoneType:
        names = ["None"]
    else:
        names = [
            hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
        ]
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
