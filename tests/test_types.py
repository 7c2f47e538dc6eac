"""How much of the tree mypy can't see into: a misspelt key of a `dict[str, Any]` is found by nobody before it runs."""

from __future__ import annotations

import ast

from tests.paths import PROJECT_ROOT

PACKAGES = ("orchestrator", "flows", "models", "db", "migrations")
UNSEEN = "dict[str, Any]"
MOST_PER_1000_LINES = 4.0
"""Where JSON enters or leaves: columns of the database, files, requests and answers."""


def sources() -> dict[str, str]:
    paths = [path for package in PACKAGES for path in sorted((PROJECT_ROOT / package).rglob("*.py"))]
    return {path.relative_to(PROJECT_ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_few_values_are_hidden_from_mypy() -> None:
    found = sources()
    lines = sum(source.count("\n") for source in found.values())
    unseen = {path: source.count(UNSEEN) for path, source in found.items() if UNSEEN in source}
    share = 1000 * sum(unseen.values()) / lines
    most = sorted(unseen.items(), key=lambda item: -item[1])[:5]
    assert share <= MOST_PER_1000_LINES, (
        f"{sum(unseen.values())} times {UNSEEN} in {lines} lines, {share:.2f} per 1,000; most in {most}. Give a frozen "
        "dataclass, a TypedDict, or a Mapping[str, object] where it is only passed on."
    )


def test_no_other_name_stands_for_what_mypy_cannot_see() -> None:
    hidden = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, source in sources().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        if ast.unparse(node.value).lower() in (UNSEEN.lower(), f"list[{UNSEEN}]".lower())
    ]
    assert hidden == []
