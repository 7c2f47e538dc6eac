"""The import arrows: flows -> orchestrator -> {models, db}; the CLI and the feedback app start without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import PROJECT_ROOT

OWN = ("db", "flows", "migrations", "models", "orchestrator", "tests")
LEARNING = {"torch", "transformers", "tokenizers", "safetensors"}

# For each package: which of our packages it may import.
ARROWS = {
    "db": {"db", "migrations"},  # db/migrate.py hands the migrations to Alembic
    "migrations": {"migrations", "db"},
    "models": {"models"},
    "orchestrator": {"orchestrator", "models", "db"},
    "flows": {"flows", "orchestrator"},
}
# What the training jobs may use besides the standard library: torch, transformers and what these two bring.
MODELS_MAY_USE = LEARNING | {"numpy", "jinja2"}
# What is optional, and the one function that imports it when a setting asks for it.
LATE = {"peft": ("models/backbone/adapters.py", "_peft")}
# Parts of orchestrator that answer people or order stages: they never touch a tensor, not even through
# another module.
WITHOUT_TORCH = ["orchestrator.cli", "orchestrator.web.app", "orchestrator.stages", "db.tables"]
# The demo alone may know the small world; everything else takes its requests and replies from people.
WORLD_DOOR = ("orchestrator/world/", "orchestrator/commands/running/demo")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, those for type checkers only left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def files(package: str) -> list[Path]:
    return sorted((PROJECT_ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_package_imports_only_what_its_arrows_allow(package: str) -> None:
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in files(package)
        for line, module in imported(path)
        if module.split(".")[0] in OWN and module.split(".")[0] not in ARROWS[package]
    ]
    assert wrong == []


def test_models_need_torch_and_transformers_alone() -> None:
    allowed = MODELS_MAY_USE | {"models", "__future__"} | set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in files("models")
        for line, module in imported(path)
        if module.split(".")[0] not in allowed | set(LATE)
    ]
    assert wrong == []


@pytest.mark.parametrize("extra", sorted(LATE))
def test_what_is_optional_is_imported_late_and_in_one_place(extra: str) -> None:
    everywhere = {
        (path.relative_to(PROJECT_ROOT).as_posix(), line)
        for package in ("models", "orchestrator", "flows", "db")
        for path in files(package)
        for line, module in imported(path)
        if module.split(".")[0] == extra
    }
    place, name = LATE[extra]
    (function,) = (
        node
        for node in ast.parse((PROJECT_ROOT / place).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    assert {path for path, _ in everywhere} == {place}
    assert all(function.lineno < line <= (function.end_lineno or 0) for _, line in everywhere)


@pytest.mark.parametrize("package", ["db", "flows", "migrations"])
def test_package_knows_no_torch(package: str) -> None:
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in files(package)
        for line, module in imported(path)
        if module.split(".")[0] in LEARNING
    ]
    assert wrong == []


def test_models_read_nothing_from_the_environment() -> None:
    """Setting a variable before transformers is imported is allowed, reading one is not."""
    readers = {"os.environ.get", "os.getenv", "os.environ.items", "os.environ.copy", "os.environ.pop"}
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{node.lineno} reads {ast.unparse(node)}"
        for path in files("models")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in readers)
        or (
            isinstance(node, ast.Subscript)
            and ast.unparse(node.value) == "os.environ"
            and isinstance(node.ctx, ast.Load)
        )
    ]
    assert wrong == []


def test_nobody_but_the_demo_knows_the_world() -> None:
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for package in ("orchestrator", "flows", "models", "db", "migrations")
        for path in files(package)
        for line, module in imported(path)
        if module.startswith("orchestrator.world")
        if not path.relative_to(PROJECT_ROOT).as_posix().startswith(WORLD_DOOR)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_starts_without_torch(module: str) -> None:
    """Really imported, in a process of its own: what it drags in counts too."""
    script = (
        f"import importlib, json, sys; importlib.import_module({module!r}); "
        f"print(json.dumps(sorted(set(sys.modules) & {LEARNING | {'prefect'}!r})))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == []


def test_tests_import_helpers_and_never_other_tests() -> None:
    """What several files of tests need stands in a module of its own: importing tests runs or hides them twice."""
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in files("tests")
        for line, module in imported(path)
        if any(part == "conftest" or part.startswith("test_") for part in module.split("."))
    ]
    assert wrong == []
