"""The reference pages are made from the code, and what they are made from is complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate_reference import PAGES, REGENERATE
from orchestrator.errors import ConfigError
from orchestrator.settings import BY_NAME, RENAMED, VARIABLES, Settings
from tests.paths import PROJECT_ROOT

PRODUCT = ("orchestrator", "models", "flows", "db", "migrations")
BESIDE = ("benchmarks", "docs", "tests")
# What is named in a string of the product is meant for the environment, whatever the string is for.
OURS = re.compile(r"(ORCHESTRATOR|PREFECT|HF)_[A-Z_]*[A-Z]|DATABASE_URL")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_of_reference_is_what_the_code_says(name):
    page = PROJECT_ROOT / "docs" / "reference" / f"{name}.md"
    assert page.read_text(encoding="utf-8") == PAGES[name](), f"docs/reference/{name}.md is old: run `{REGENERATE}`"


def test_commands_are_listed_alike_in_every_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    narrow = PAGES["commands"]()
    monkeypatch.setenv("COLUMNS", "300")
    assert PAGES["commands"]() == narrow


def literal(node: ast.expr, constants: dict[str, str]) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return constants.get(node.id) if isinstance(node, ast.Name) else None


def touched(path: Path, *, written: bool) -> Iterator[str]:
    """Variables that a file reads, and those that it sets, by calls and subscripts with a literal or a constant."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            if re.search(r"(\benviron\.(get|pop|setdefault)|\bgetenv)$", called):
                name = literal(node.args[0], constants)
            elif called in ("read", "secret") and path.is_relative_to(PROJECT_ROOT / "orchestrator"):
                name = literal(node.args[0], constants)
                if name and called == "secret":
                    yield f"{name}_FILE"
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            name = literal(node.slice, constants) if written or isinstance(node.ctx, ast.Load) else None
        elif written and isinstance(node, ast.Subscript) and ast.unparse(node.value) == "env":
            name = literal(node.slice, constants)
        if name:
            yield name


def named(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and OURS.fullmatch(node.value):
            yield node.value


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))]


def test_a_variable_that_is_read_or_set_is_seen(tmp_path):
    """What the next test rests on."""
    file = tmp_path / "module.py"
    file.write_text(
        "A = 'FIRST'\nos.environ.get(A, '')\nx = os.environ['SECOND']\nos.environ['THIRD'] = '1'\nenv['FOURTH'] = '1'\n"
        "environ.setdefault('FIFTH', 'y')\nother['SIXTH']\nos.getenv('SEVENTH')\n"
    )
    assert sorted(touched(file, written=True)) == ["FIFTH", "FIRST", "FOURTH", "SECOND", "SEVENTH", "THIRD"]
    assert sorted(touched(file, written=False)) == ["FIFTH", "FIRST", "SECOND", "SEVENTH"]
    file.write_text("x = {'ORCHESTRATOR_X': 1, 'PREFECT_': 2, 'HF_Y': 'DATABASE_URL'}\n")
    assert sorted(named(file)) == ["DATABASE_URL", "HF_Y", "ORCHESTRATOR_X"]


def test_every_variable_of_the_product_is_in_the_table():
    found = {name for path in files(*PRODUCT) for name in [*touched(path, written=True), *named(path)]}
    assert sorted(found - BY_NAME.keys() - RENAMED.keys()) == []


def test_every_variable_that_tests_and_benchmarks_read_is_in_the_table():
    theirs = {name for path in files(*BESIDE) for name in touched(path, written=False)}
    asked = {name for name in theirs if OURS.fullmatch(name) or name.startswith(("BENCH_", "XDG_"))}
    assert {"ORCHESTRATOR_DATA", "BENCH_PIP_ARGS"} <= asked
    assert sorted(asked - BY_NAME.keys()) == []


def test_every_variable_of_the_containers_is_in_the_table():
    text = (PROJECT_ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert "POSTGRES_PASSWORD" in (asked := set(re.findall(r"\$\{(\w+)", text)))
    assert sorted(asked - BY_NAME.keys() - RENAMED.keys()) == []


def test_nothing_is_in_the_table_that_nobody_knows():
    table = PROJECT_ROOT / "orchestrator" / "settings.py"
    words = {
        path: path.read_text(encoding="utf-8") for path in files(*PRODUCT, *BESIDE) if path.name != "test_reference.py"
    }
    start, _, rest = words[table].partition("VARIABLES: dict")
    words[table] = start + rest.partition("BY_NAME =")[2]
    words[Path("compose")] = (PROJECT_ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    everything = "\n".join(words.values())
    unknown = [name for name in BY_NAME if not re.search(rf"\b{name.removesuffix('_FILE')}\b", everything)]
    assert unknown == []


def test_a_number_of_the_environment_has_its_unit_and_what_raising_it_does():
    assert [variable.name for variable in BY_NAME.values() if bool(variable.unit) != bool(variable.raised)] == []
    numbers = [variable for variable in BY_NAME.values() if (variable.default or "").isdecimal()]
    assert [variable.name for variable in numbers if not variable.unit] == []
    assert len(BY_NAME) == sum(len(group) for group in VARIABLES.values())


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ORCHESTRATOR_DEVICE", "tpu", "ORCHESTRATOR_DEVICE is 'tpu'; expected auto, cpu or cuda."),
        (
            "ORCHESTRATOR_DETECTOR_ACTION",
            "drop",
            "ORCHESTRATOR_DETECTOR_ACTION is 'drop'; expected log, flag or refuse.",
        ),
        (
            "ORCHESTRATOR_SERVING_PRECISION",
            "float16",
            "ORCHESTRATOR_SERVING_PRECISION is 'float16'; expected float32, tf32 or bfloat16.",
        ),
        ("ORCHESTRATOR_JOBS_AT_ONCE", "0", "ORCHESTRATOR_JOBS_AT_ONCE is '0'; expected a whole number from 1."),
    ],
)
def test_a_value_that_is_none_of_the_choices_is_refused(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        Settings.from_env(find_instance=False)
    assert str(refused.value) == told


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    for name in ("ORCHESTRATOR_DEVICE", "ORCHESTRATOR_DETECTOR_ACTION", "ORCHESTRATOR_JOBS_AT_ONCE", "DATABASE_URL"):
        monkeypatch.setenv(name, "")
    settings = Settings.from_env(find_instance=False)
    found = (settings.device, settings.detector_action, settings.jobs_at_once, settings.database_url)
    assert found == ("auto", "log", 1, None)
