"""Settings of a job as frozen dataclasses, read from the spec with every key and type checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from models.runtime.job import JobError

S = TypeVar("S")


def settings_from(cls: type[S], mapping: Mapping[str, Any]) -> S:
    """The settings dataclass `cls` filled from a JSON object.

    Raises:
        JobError: an unknown key, a missing one, a value of the wrong type, or one that the dataclass refuses
            with a ValueError.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in fields:
            raise JobError(f"Unknown setting '{key}' in {cls.__name__}. Known: {', '.join(sorted(fields)) or 'none'}.")
        values[key] = _checked(f"{cls.__name__}.{key}", value, hints[key])
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise JobError(f"{cls.__name__}: {error}") from error


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, an int being welcome as a float; JobError otherwise."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _checked(name, value, option)
            except JobError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin in (list, tuple) and isinstance(value, (list, tuple)):
        item_hint = args[0] if args else Any
        return origin(_checked(f"{name}[{i}]", item, item_hint) for i, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {key: _checked(f"{name}.{key}", item, args[1]) for key, item in value.items()}
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return settings_from(hint, value)
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", None) if origin is None else None
    raise JobError(f"{name} is {value!r}; expected {wanted or str(hint).replace('typing.', '')}.")
