"""The wheel: it holds every file of the packages, and what is installed from it works outside a clone."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.environments import make_environment
from tests.orchestrator.world.small_demo import ONE_SMALL_CYCLE, demo
from tests.paths import EXAMPLES, PROJECT_ROOT

PACKAGES = ("orchestrator", "flows", "models", "db", "migrations")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=PROJECT_ROOT, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_packages_and_the_examples(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    lying = {
        path.relative_to(PROJECT_ROOT).as_posix()
        for package in PACKAGES
        for path in (PROJECT_ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == lying | {
        f"orchestrator/examples/{path.relative_to(EXAMPLES)}" for path in EXAMPLES.rglob("*.*") if path.is_file()
    }


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    needs = metadata.metadata("rlhf-orchestrator").get_all("Requires-Dist") or []
    required = [Requirement(text) for text in needs]
    plain = {each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})}
    site = make_environment(tmp_path / "environment", plain)
    python = tmp_path / "environment" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    assert (site / "orchestrator" / "cli.py").is_file()

    empty = tmp_path / "an empty folder"
    empty.mkdir()
    # No name of ours but the home's: nothing may lead back to the clone.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["ORCHESTRATOR_HOME"] = str(tmp_path / "home")
    done = demo([str(python.with_name("orchestrator"))], empty, ONE_SMALL_CYCLE, environment, cwd=empty)
    assert (empty / "demo-report.json").is_file(), done.stdout + done.stderr
    assert done.returncode in (0, 1)
    assert [entry["cycle"] for entry in json.loads((empty / "demo-report.json").read_text())["cycles"]] == [0, 1]
    assert str(PROJECT_ROOT) not in done.stdout + done.stderr
