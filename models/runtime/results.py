"""Results of jobs as frozen dataclasses: written with a version, read back with every type checked. No torch.

A results dataclass stands beside what makes it (`models/policy/results.py`, say). `Job.publish` writes what
`result_to_json` gives into results.json; stages, gates, reports and pictures read it with `result_from_json`, once, and
take attributes from there.

What an earlier version did not measure yet has a default in its dataclass, so that results of every age can be read;
what a later version measures besides is passed over. A field that is renamed or changes its unit or type is a new
version, and its dataclass says how the old one is read.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union

R = TypeVar("R")

VERSION = 2
"""Of what is written today. Results without a version are of before there was one, and count as 1."""
VERSION_KEY = "version"

IF_MEASURED = {"json_only_if_set": True}
"""Metadata of a field whose key is left out of the JSON where it is None: what a job was not asked for is not there.

    score_watcher: float | None = field(default=None, metadata=IF_MEASURED)
"""


class ResultError(ValueError):
    """Results that are not what they should be: where they are from, the path in them, what was found and expected."""


def result_to_json(result: Any) -> dict[str, Any]:
    """A results dataclass as the JSON object that `result_from_json` reads, with its version."""
    return {VERSION_KEY: VERSION} | part_to_json(result)


def part_to_json(result: Any) -> dict[str, Any]:
    """The same without a version: for a part of results that stands in a file of its own, a line of it, or a row."""
    return {
        field.name: _json(value)
        for field in dataclasses.fields(result)
        if (value := getattr(result, field.name)) is not None or not field.metadata.get("json_only_if_set")
    }


def result_from_json(cls: type[R], mapping: Mapping[str, Any], *, where: str) -> R:
    """The results dataclass `cls` from a JSON object, of this version, an earlier one or a later one.

    Keys that `cls` does not have are passed over and those that the object does not have take their defaults. An int is
    welcome as a float. Null is what JSON has for a number that was not finite: NaN, where the field doesn't admit None.

    Args:
        where: what the error names, such as "the results of artifact 41".

    Raises:
        ResultError: a key without a default is missing, or a value is not of its type.
    """
    return _dataclass(cls, mapping, where, "")


def _json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return part_to_json(value)
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    # JSON has no other word for it; read back it is NaN, or None where the field admits that.
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether there must be a value, of each field."""
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return tuple(
        (field.name, hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(cls)
    )


def _dataclass(cls: type[R], mapping: Any, where: str, path: str) -> R:
    if not isinstance(mapping, Mapping):
        raise _error(where, path, mapping, f"an object ({cls.__name__})")
    values = {}
    for name, hint, needed in _fields(cls):  # type: ignore[arg-type]
        place = f"{path}.{name}" if path else name
        if name in mapping:
            values[name] = _read(mapping[name], hint, where, place)
        elif needed:
            known = ", ".join(sorted(map(str, mapping))) or "nothing"
            raise ResultError(f"{where} have no `{place}`; found {known}. Expected it in every {cls.__name__}.")
    return cls(**values)


def _read(value: Any, hint: Any, where: str, path: str) -> Any:
    """`value` as the type `hint`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(value, args, where, path)
    if origin is Literal:
        if value in args:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_read(item, args[0], where, f"{path}[{i}]") for i, item in enumerate(value))
        if len(args) == len(value):
            items = zip(value, args, strict=True)
            return tuple(_read(item, part, where, f"{path}[{i}]") for i, (item, part) in enumerate(items))
    elif origin in (list, Sequence) and isinstance(value, (list, tuple)):
        return [_read(item, args[0], where, f"{path}[{i}]") for i, item in enumerate(value)]
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _read(item, args[1], where, f"{path}.{key}") for key, item in value.items()}
    elif hint is Any:
        return value
    elif hint is None or hint is types.NoneType:
        if value is None:
            return None
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, value, where, path)
    elif hint is float and value is None:
        return math.nan
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise _error(where, path, value, _named(hint))


def _one_of(value: Any, options: tuple[Any, ...], where: str, path: str) -> Any:
    """The first of the types that fits. Of one type or None, the error is that type's own, with its path."""
    if value is None and types.NoneType in options:
        return None
    real = [option for option in options if option is not types.NoneType]
    if len(real) == 1:
        return _read(value, real[0], where, path)
    for option in real:
        try:
            return _read(value, option, where, path)
        except ResultError:
            continue
    raise _error(where, path, value, " or ".join(map(_named, options)))


def _error(where: str, path: str, value: Any, expected: str) -> ResultError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:80] + "…"
    return ResultError(f"{where} have {f'`{path}` = ' if path else ''}{shown}; expected {expected}.")


def _named(hint: Any) -> str:
    if hint is types.NoneType:
        return "null"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
