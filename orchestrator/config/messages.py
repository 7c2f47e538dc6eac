"""What is wrong with a configuration, in the words of the file: which key, what was found, what is expected.

pydantic speaks of inputs, objects and arrays, and numbers list entries from 0; an operator has a TOML file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from models.runtime.settings import SettingError
from orchestrator.config.base import keys_of, section_in

LONGEST_SHOWN = 80
"""Characters of a found value; more of it helps nobody to find it in the file."""

_EXPECTED = {
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "dataclass_type": "a section with keys of its own",
    "list_type": "a list in square brackets",
    "tuple_type": "a list in square brackets",
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
}
"""By pydantic's type of an error, what is expected in the place; the names in braces are pydantic's own."""


def explain(error: ValidationError, model: type[Any]) -> str:
    """All that is wrong, in one line: `section.key: found x; expected y`, parted by semicolons."""
    return "; ".join(_line(item, model) for item in error.errors())


def _line(item: ErrorDetails, model: type[Any]) -> str:
    key, kind, found = _key(item["loc"]), item["type"], item["input"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{key}: unknown key; {meant}known are {', '.join(known)}"
    if kind == "missing":
        return f"{key}: not given, and has no default"
    if isinstance(error := item.get("ctx", {}).get("error"), SettingError):
        # As it stands in the file, where a 1 is not yet a 1.0; a default that is refused does not stand there.
        written = found.get(error.name, error.found) if isinstance(found, Mapping) else error.found
        return f"{key}.{error.name}: found {_shown(written)}; expected {error.expected}"
    if kind == "value_error":
        # Our own words, which name the key themselves where they speak of several.
        message = item["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(found, dict) else f"found {_shown(found)}; "
        return f"{key}: {shown}{message}" if key else message
    limits = {
        name: int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        for name, limit in item.get("ctx", {}).items()
    }
    expected = _EXPECTED[kind].format(**limits) if kind in _EXPECTED else item["msg"]
    if kind == "list_type" and isinstance(found, Mapping):
        expected = f"sections that each begin with [[{key}]], in double brackets"
    return f"{key}: found {_shown(found)}; expected {expected}"


def _key(place: Sequence[int | str]) -> str:
    """`section.key`, and of a list which entry, counted from 1."""
    words: list[str] = []
    dotted: list[str] = []
    for part in place:
        if isinstance(part, int):
            words += [".".join(dotted), f"entry {part + 1}"]
            dotted = []
        else:
            dotted.append(part)
    return ", ".join(word for word in [*words, ".".join(dotted)] if word)


def _shown(found: Any) -> str:
    """A value as it would stand in the file, cut where it is long."""
    if isinstance(found, Mapping):
        return f"a section with {', '.join(map(str, found)) or 'no keys'}"
    text = repr(found) if isinstance(found, str | float) else json.dumps(found, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _known_keys(model: type[Any], path: Sequence[int | str]) -> list[str]:
    section: Any = model
    for part in (part for part in path if isinstance(part, str)):
        section = section_in(keys_of(section)[part].annotation)
    return sorted(keys_of(section))
