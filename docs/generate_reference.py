"""Write configuration.md, commands.md and environment.md of docs/reference from the code.

    python docs/generate_reference.py

tests/test_reference.py holds them equal to it. What they say stands in the code: keys in `models/*/settings.py` and
`orchestrator/config/`, commands in `orchestrator/commands/`, variables in `orchestrator/settings.py`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from pydantic.fields import FieldInfo  # noqa: E402

from orchestrator.cli import COMMANDS, GROUPS, make_parser  # noqa: E402
from orchestrator.config import CycleConfig  # noqa: E402
from orchestrator.config.base import bounds_of, keys_of, section_in, statement_of  # noqa: E402
from orchestrator.settings import VARIABLES, Variable  # noqa: E402
from orchestrator.world.settings import DemoConfig  # noqa: E402

WIDTH = 120
REGENERATE = "python docs/generate_reference.py"
NOTE = f"<!-- Made from the code by `{REGENERATE}`; change it there. -->"
# Wider than any line: argparse then wraps nothing, whatever the terminal is.
UNWRAPPED = 100_000


def configuration() -> str:
    """Every section and key of the configuration file."""
    lines = [
        "# Configuration",
        "",
        NOTE,
        "",
        *paragraph(
            "A cycle is told what to do by one TOML file (`orchestrator cycle run --config FILE`); begin with a copy "
            "of [examples/local.toml](../../examples/local.toml). `--set section.key=value` changes a key for one "
            'run. A key that does not exist is an error, and so is a value of another type: `"40"` is no number. A '
            "relative path is taken from the file's folder, and `$VARIABLES` in paths are expanded. Where things run "
            "is told by the [environment](environment.md), and what is done by hand by [commands](commands.md)."
        ),
        "",
        *paragraph(
            'Each key stands with its default, its type with bounds, and its unit; "higher:" says what raising it '
            "does. Scores are in PM units, of which a difference of 1 means odds of e = 2.7 that the reply is "
            "preferred; KL is in nats per reply."
        ),
    ]
    whole = keys_of(CycleConfig)
    lines += ["", "## The top of the file", ""]
    lines += entries({name: known for name, known in whole.items() if section_in(known.annotation) is None})
    for name, known in whole.items():
        if section_in(known.annotation) is not None:
            lines += section(name, known)
    lines += ["", "## The demo's own sections", ""]
    lines += paragraph(
        "`orchestrator demo --config FILE` knows these beside the others; a cycle does not. Begin with a copy of "
        "[examples/demo.toml](../../examples/demo.toml)."
    )
    for name, known in keys_of(DemoConfig).items():
        if name not in whole:
            lines += section(name, known, level=3)
    return "\n".join(lines) + "\n"


def section(name: str, known: FieldInfo, level: int = 2) -> Iterator[str]:
    """A section, then those within it."""
    cls = section_in(known.annotation)
    fields = keys_of(cls)
    written = f"[[{name}]]" if typing.get_origin(known.annotation) is list else f"[{name}]"
    yield from ("", f"{'#' * level} `{written}`", "")
    yield from paragraph(inspect.cleandoc(cls.__doc__).split("\n\n")[0].replace("\n", " "))
    if known.description and known.default is None:
        # What giving it does; the others are always there.
        yield from ("", *paragraph(known.description))
    yield ""
    yield from entries({key: field for key, field in fields.items() if section_in(field.annotation) is None})
    for key, field in fields.items():
        if section_in(field.annotation) is not None:
            yield from section(f"{name}.{key}", field, 3)


def entries(fields: dict[str, FieldInfo]) -> Iterator[str]:
    """A list of keys."""
    for name, known in fields.items():
        statement = statement_of(known)
        facts = [kind(known)]
        facts += [statement["unit"]] if statement["unit"] not in ("", "none") else []
        raised = f" Higher: {statement['raised']}." if statement["raised"] else ""
        given = "must be given" if known.is_required() else f"`{toml(known.get_default(call_default_factory=True))}`"
        given = "not given" if given == "`None`" else given
        yield from item(f"**`{name}`**: {given} ({'; '.join(facts)}). {known.description}{raised}")


def kind(known: FieldInfo) -> str:
    """The type of a key in the words of the file, with its bounds."""
    words, bounds = type_in_words(known.annotation), bounds_of(known)
    return f"{words}, {bounds}" if bounds else words


def type_in_words(annotation: Any) -> str:
    """`whole number`, `list of texts`, `"a"` or `"b"`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        *first, last = (f'`"{choice}"`' for choice in inner)
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_in_words(each) for each in inner if each is not type(None))
    if origin is typing.Annotated:
        return type_in_words(inner[0])
    if origin in (list, tuple):
        each = type_in_words(inner[0])
        return f"list of {each}" if "`" in each else f"list of {each}s"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation]


def toml(value: Any) -> str:
    """A value as it stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return f"{value:g}" if isinstance(value, float) and 0 < value < 1e-3 else str(value)


def commands() -> str:
    """Every command of the command line with its options."""
    parser = make_parser(COMMANDS)
    (chosen,) = subparsers_of(parser)
    lines = [
        "# Commands",
        "",
        NOTE,
        "",
        *paragraph(
            "Everything that an operator does by hand: `orchestrator COMMAND`. Exit status: 0 done, 1 a negative "
            "answer, 2 an error, whose reason is one line. Which instance a command speaks to is told by the "
            "[environment](environment.md)."
        ),
    ]
    for heading, group in GROUPS.items():
        lines += ["", f"## {heading}"]
        for name in group:
            lines += command(f"orchestrator {name}", chosen.choices[name], chosen.choices[name].description or "", 3)
    return "\n".join(lines) + "\n"


def command(name: str, parser: argparse.ArgumentParser, summary: str, level: int) -> Iterator[str]:
    """A command with its arguments, then its actions in the same way."""
    yield from ("", f"{'#' * level} `{name}`", "", *paragraph(sentence(summary)))
    formatter = argparse.HelpFormatter(prog=name, width=UNWRAPPED)
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    shown = [action for action in actions if action.help is not argparse.SUPPRESS]
    plain = [action for action in shown if not isinstance(action, argparse._SubParsersAction)]
    if plain:
        yield ""
    for action in plain:
        yield from item(argument(formatter, action))
    for chosen in subparsers_of(parser):
        helps = {each.dest: each.help or "" for each in chosen._choices_actions}
        for action_name, inner in chosen.choices.items():
            yield from command(
                f"{name} {action_name}", inner, helps.get(action_name) or inner.description or "", level + 1
            )


def argument(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    """One argument or option: how it is written, whether it must be, what it is for."""
    metavar = (action.dest if not action.option_strings else action.dest.upper()).replace("_", "-")
    values = formatter._format_args(action, metavar)
    written = ", ".join(f"{option} {values}".strip() for option in action.option_strings) or values
    if action.choices is not None and action.metavar is None and action.option_strings:
        written = ", ".join(action.option_strings) + " " + "|".join(map(str, action.choices))
    must = " Must be given." if action.required and action.option_strings else ""
    told = formatter._expand_help(action).strip() if action.help else ""
    default = action.default
    nothing = default is False or default in (None, argparse.SUPPRESS, [], "")
    says = not nothing and action.option_strings and "default" not in told
    told += f" (default: {default})" if says else ""
    return f"**`{written}`**: {sentence(told.strip())}{must}" if told else f"**`{written}`**.{must}"


def subparsers_of(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction[argparse.ArgumentParser]]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def environment() -> str:
    """Every variable of the environment."""
    lines = [
        "# Environment",
        "",
        NOTE,
        "",
        *paragraph(
            "Where things run is told by variables of the environment, which never enter a fingerprint: the same "
            "cycle on another machine is the same cycle. What is trained and how is told by the "
            "[configuration](configuration.md). A variable that is empty counts as unset. `orchestrator up` sets what "
            "its processes need; you set the first three groups where that is not enough."
        ),
    ]
    for heading, group in VARIABLES.items():
        lines += ["", f"## {heading}", ""]
        for variable in group:
            lines += item(described(variable))
    return "\n".join(lines) + "\n"


def described(variable: Variable) -> str:
    """What is known of a variable, in one paragraph."""
    default = variable.default_in_words or (f"`{variable.default}`" if variable.default else "")
    facts = [f"Default: {default}."] if default else []
    facts += [f"One of {', '.join(f'`{choice}`' for choice in variable.choices)}."] if variable.choices else []
    facts += [f"Unit: {variable.unit}. Higher: {variable.raised}."] if variable.unit else []
    return " ".join([f"**`{variable.name}`**: {variable.meaning}", *facts, f"Read by: {variable.readers}."])


def sentence(text: str) -> str:
    """A text with a capital letter first and a full stop last; what stands in code stays."""
    text = text[:1].upper() + text[1:] if text else text
    return text if not text or text.endswith((".", "?", "!")) else text + "."


def item(text: str) -> list[str]:
    """An entry of a list."""
    return wrapped(text, "- ", "  ")


def paragraph(text: str) -> list[str]:
    """A text in lines."""
    return wrapped(text, "", "")


def wrapped(text: str, first: str, others: str) -> list[str]:
    """Lines within the width; code and links stay whole."""
    kept = re.sub(
        r"`[^`]+`|\[[^\]]+\]\([^)]+\)|\d %", lambda found: found[0].replace(" ", "\0"), text.replace("<", "\\<")
    )
    lines = textwrap.wrap(
        kept, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in lines]


PAGES: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "commands": commands,
    "environment": environment,
}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (ROOT / "docs" / "reference" / f"{name}.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
