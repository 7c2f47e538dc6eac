"""The import arrows: flows -> orchestrator -> {models, db}, the floors inside, and what starts without what."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import PROJECT_ROOT

OWN = ("db", "flows", "migrations", "models", "orchestrator", "tests")
WHOLE_PATH = re.compile(
    r"(?<![\w/.])((?:benchmarks|db|docs|examples|flows|migrations|models|orchestrator|tests)/[a-z0-9_/]+\.(?:py|md|toml))\b"
)
BARE_NAME = re.compile(r"`([a-z_]+(?:/[a-z_]+)*\.py)`")
LEARNING = {"torch", "transformers", "tokenizers", "safetensors"}

# For each package: which of our packages it may import.
ARROWS = {
    "db": {"db", "migrations"},  # db/migrate.py hands the migrations to Alembic
    "migrations": {"migrations", "db"},
    "models": {"models"},
    "orchestrator": {"orchestrator", "models", "db"},
    "flows": {"flows", "orchestrator"},
}
# The floors of both packages, the ground first: rooms on one floor know each other's insides no more than those above
# them, so that a file imports from its own room and from lower floors alone.
FLOORS = {
    "models": [
        ["runtime"],
        ["backbone", "statistics"],
        ["sampling", "chat"],
        ["model_folders"],
        ["preference", "detectors"],
        ["policy"],
        ["initial_policy", "memory"],
        ["jobs"],
    ],
    "orchestrator": [
        ["errors", "terminal"],
        ["running_instance"],
        ["settings"],
        ["database"],
        ["http_shared", "config"],
        ["data"],
        ["store"],
        ["people"],
        ["conversations", "instance"],
        ["serving", "cycles", "judging"],
        ["web", "reports"],
        ["stages"],
        ["world"],
        ["commands"],
        ["cli"],
    ],
}
# What the training jobs may use besides the standard library: torch, transformers and what these two bring.
MODELS_MAY_USE = LEARNING | {"numpy", "jinja2"}
# What is optional, and the one function that imports it when a setting asks for it.
LATE = {"peft": ("models/backbone/adapters.py", "_peft")}
# Parts of orchestrator that answer people or order stages: they never touch a tensor, not even through
# another module.
WITHOUT_TORCH = ["orchestrator.cli", "orchestrator.web.app", "orchestrator.stages", "db.tables"]
# Rooms and modules that start without these.
WITHOUT = {
    "orchestrator/conversations": {"fastapi", "starlette"},
    "orchestrator/people": {"fastapi", "starlette"},
    "orchestrator/data": {"fastapi", "starlette"},
    "models/statistics": {"torch"},
    "models/*/settings.py": {"torch"},
    "models/*/results.py": {"torch"},
}
# The demo alone may know the small world; everything else takes its requests and replies from people.
WORLD_DOOR = ("orchestrator/world/", "orchestrator/commands/running/demo")


def imported(path: Path, *, for_types: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted module or name in one) of every import in a file; those for type checkers alone if asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not for_types
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


def module_of(path: Path) -> str:
    return path.relative_to(PROJECT_ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_every_room_has_its_floor(package: str) -> None:
    rooms = {path.stem for path in (PROJECT_ROOT / package).iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert rooms == {room for floor in FLOORS[package] for room in floor}


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_no_file_imports_from_a_higher_floor_or_from_beside_it(package: str) -> None:
    """Not inside a function either, and not for type checkers alone."""
    level = {room: number for number, floor in enumerate(FLOORS[package]) for room in floor}
    wrong = []
    for path in files(package):
        own = module_of(path).split(".")[1:2]
        for line, name in imported(path, for_types=True):
            of, *rest = name.split(".")
            other = of == package and rest and rest[0] in level and own and rest[0] != own[0]
            if other and level[rest[0]] >= level[own[0]]:
                wrong.append(f"{path.relative_to(PROJECT_ROOT)}:{line} imports {name}")
    assert wrong == []


def test_no_circle_of_files() -> None:
    paths = {module_of(path): path for package in ARROWS for path in files(package)}
    imports: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = [name for _, name in imported(path, for_types=True)]
        found = {name if name in paths else name.rpartition(".")[0] for name in names}
        imports[module] = (found & paths.keys()) - {module}
    # Whatever imports nothing that is left is no part of a circle; take it away until nothing changes.
    left = dict(imports)
    while free := [module for module, wanted in left.items() if not wanted & left.keys()]:
        for module in free:
            del left[module]
    assert {module: sorted(wanted & left.keys()) for module, wanted in left.items()} == {}


@pytest.mark.parametrize("place", sorted(WITHOUT))
def test_room_starts_without(place: str) -> None:
    """Really imported, in a process of its own: what it drags in counts too."""
    found = sorted(PROJECT_ROOT.glob(place if place.endswith(".py") else f"{place}/**/*.py"))
    modules = [module_of(path) for path in found]
    assert dragged_in(modules, WITHOUT[place]) == []


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
    assert dragged_in([module], LEARNING | {"prefect"}) == []


def dragged_in(modules: list[str], unwanted: set[str]) -> list[str]:
    """Which of the unwanted packages a fresh process holds after importing the modules."""
    script = (
        "import importlib, json, sys; "
        f"[importlib.import_module(name) for name in {modules!r}]; "
        f"print(json.dumps(sorted(set(sys.modules) & {unwanted!r})))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_every_file_that_code_names_exists() -> None:
    """Whole paths anywhere, and bare names in backticks as files beside the one that names them."""
    wrong = []
    for path in [path for package in ("benchmarks", *ARROWS) for path in files(package)]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            named = [PROJECT_ROOT / name for name in WHOLE_PATH.findall(line)]
            named += [path.parent / name for name in BARE_NAME.findall(line) if not (PROJECT_ROOT / name).exists()]
            wrong += [f"{path.relative_to(PROJECT_ROOT)}:{number} {name}" for name in named if not name.exists()]
    assert wrong == []


def test_tests_import_helpers_and_never_other_tests() -> None:
    """What several files of tests need stands in a module of its own: importing a test file would hide its fixtures."""
    wrong = [
        f"{path.relative_to(PROJECT_ROOT)}:{line} imports {module}"
        for path in files("tests")
        for line, module in imported(path)
        if any(part == "conftest" or part.startswith("test_") for part in module.split("."))
    ]
    assert wrong == []
