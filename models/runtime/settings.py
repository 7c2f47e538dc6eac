"""Settings of a job: frozen dataclasses that state each of them once, read from the spec with every type checked.

`setting` states a field: its default, what it means, its unit, what raising it does, and its bounds. From that one
statement come the job's own check (`Checked`), the sections of `orchestrator/config/`, which are made from these
dataclasses, and docs/reference/configuration.md. No torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from models.runtime.errors import JobError

S = TypeVar("S")
V = TypeVar("V")


class SettingError(ValueError):
    """One setting has a value that makes no sense; `name`, `found` and `expected` serve those who word it anew."""

    def __init__(self, name: str, found: Any, expected: str) -> None:
        self.name, self.found, self.expected = name, found, expected
        super().__init__(f"{name} is {found!r}; expected {expected}")


def stated(
    meaning: str,
    *,
    unit: str = "",
    raised: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    new: bool = False,
) -> dict[str, Any]:
    """The metadata of a field, under the names that pydantic's `Field` takes: it reads bounds and text out of it.

    `raised` says what a higher value does. A `new` key came after artifacts had been made: a job is told of it only
    where it differs from its default, so that what was made before has the same fingerprint.
    """
    bounds = {"ge": at_least, "gt": above, "le": at_most, "lt": below}
    return {
        "description": meaning,
        "json_schema_extra": {"unit": unit, "raised": raised, "new": new},
        **{name: bound for name, bound in bounds.items() if bound is not None},
    }


def setting(default: V, meaning: str, **statement: Any) -> V:
    """A field of a settings dataclass with a default; see `stated` for the rest."""
    made: V = dataclasses.field(default=default, metadata=stated(meaning, **statement))
    return made


class Checked:
    """Base of the settings dataclasses: bounds are checked, then the rules that tie several settings together."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not within(value, field.metadata):
                raise SettingError(field.name, value, bounds_in_words(field.metadata))
        self.check()

    def check(self) -> None:
        """Refuse settings that make no sense together; a class with rules calls its base's too.

        Raises:
            ValueError: what is wrong, and what to do.
        """


def within(value: float, bounds: Mapping[str, Any]) -> bool:
    """Whether a number is finite and within the bounds of a field's metadata."""
    return (
        math.isfinite(value)
        and value >= bounds.get("ge", -math.inf)
        and value > bounds.get("gt", -math.inf)
        and value <= bounds.get("le", math.inf)
        and value < bounds.get("lt", math.inf)
    )


def bounds_in_words(bounds: Mapping[str, Any]) -> str:
    """`at least 0`, `more than 0 and at most 1`; `a finite number` where there are none."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return " and ".join(f"{word} {_number(bounds[name])}" for name, word in words.items() if name in bounds) or (
        "a finite number"
    )


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


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
        raise JobError(f"{cls.__name__}: {str(error).removesuffix('.')}.") from error


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
