"""What every section of the configuration shares: strictness, paths, threads, and what a job is told of a section.

Two kinds of sections: those that a job follows are made from the job's settings (`models/*/settings.py`), which state
each key once; what only the orchestrator follows is stated here in `orchestrator/config/`, by `key`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import typing
from typing import Annotated, Any, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass, is_pydantic_dataclass
from pydantic.fields import FieldInfo

from models.runtime.settings import Checked, bounds_in_words, setting, stated


def _expanded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise ValueError("an environment variable that it names is not set")
    return os.path.expanduser(expanded)


PathText = Annotated[str, BeforeValidator(_expanded)]

STRICT = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
"""Unknown keys are errors, and so are numbers that are none."""


class Section(BaseModel):
    """Base of the sections that only the orchestrator follows: values are never coerced in silence."""

    model_config = ConfigDict(**STRICT, frozen=True)


@dataclasses.dataclass(frozen=True)
class Threads(Checked):
    """Base of the sections whose job runs on so many threads."""

    threads: int = setting(
        1,
        "CPU threads of the job; no more than the machine has cores. Another number gives other last digits, and so "
        "another artifact.",
        unit="threads",
        raised="faster on CPU, as far as there are free cores",
        at_least=1,
    )


def key(default: Any, meaning: str, **statement: Any) -> Any:
    """A key that only the orchestrator follows, stated as `setting` states those of jobs; `...`: it must be given."""
    given = {name: statement.pop(name) for name in ("min_length", "max_length") if name in statement}
    return Field(default, **given, **stated(meaning, **statement))


def key_of(settings: type[Checked], name: str, **changed: Any) -> Any:
    """The key of a setting that a job knows by another name: default, meaning and bounds are the job's."""
    (found,) = (field for field in dataclasses.fields(settings) if field.name == name)  # type: ignore[arg-type]
    statement: dict[str, Any] = {"default": found.default, **found.metadata, **changed}
    return Field(**statement)


def section_in(annotation: Any) -> Any:
    """The section's class in the annotation of a key, as `OodSection | None` has one; None where it is a value's."""
    choices = [annotation, *typing.get_args(annotation)]  # of `X | None`, and of `list[X]`
    return next((each for each in choices if isinstance(each, type) and issubclass(each, Section | Checked)), None)


def keys_of(section: Any) -> dict[str, FieldInfo]:
    """What is known of each key of a section's class, by name, its own before those that it inherits."""
    if issubclass(section, BaseModel):
        return dict(section.model_fields)
    if not is_pydantic_dataclass(section):
        # A section within a job's settings, such as [ppo.watch].
        section = dataclass(section, frozen=True, config=STRICT)
    fields: dict[str, FieldInfo] = section.__pydantic_fields__
    own_first = (name for base in section.__mro__ for name in inspect.get_annotations(base))
    return {name: fields[name] for name in dict.fromkeys(own_first) if name in fields}


class Statement(TypedDict):
    """What is stated of a key beside its meaning and bounds."""

    unit: str
    raised: str
    """What a higher value does."""
    new: bool
    """Whether it came after artifacts had been made."""


def statement_of(known: FieldInfo) -> Statement:
    """Unit, what raising does and whether the key is new, as they were stated; sections have none of it."""
    extra: Any = known.json_schema_extra or {}
    return {"unit": extra.get("unit", ""), "raised": extra.get("raised", ""), "new": extra.get("new", False)}


def bounds_of(known: FieldInfo) -> str:
    """The limits of a key in words, `at least 1 and at most 4`; empty where it has none."""
    bounds = {
        name: getattr(rule, name)
        for rule in known.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(rule, name, None) is not None
    }
    return bounds_in_words(bounds) if bounds else ""


def told(section: Any, settings: type[Checked]) -> dict[str, Any]:
    """What a job with these settings is told of a section, and its threads; its fingerprint is made from this."""
    names = {field.name for field in dataclasses.fields(settings)} | {"threads"}  # type: ignore[arg-type]
    return {name: value for name, value in values_of(section).items() if name in names}


def values_of(section: Any) -> dict[str, Any]:
    """The values of a section's keys as JSON has them, sections within it being objects.

    A key that came later is there only where it differs from its default, so that what was made before is found again.
    """
    return {
        name: _plain(value)
        for name, known in keys_of(type(section)).items()
        for value in (getattr(section, name),)
        if value != known.default or not statement_of(known)["new"]
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return values_of(value) if isinstance(value, Section | Checked) else value
