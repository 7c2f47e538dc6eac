"""What CI says at its end about tests that were not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import PROJECT_ROOT
from tests.skipped import summary

SUITE = """
import pytest

def test_that_runs():
    pass

def test_without_its_program():
    pytest.skip("no curl")

@pytest.mark.skipif(True, reason="only root has to change user")
def test_of_root():
    pass

@pytest.mark.gpu
def test_on_a_gpu():
    pass

@pytest.mark.long
def test_of_an_hour():
    pass

@pytest.mark.xfail(reason="known")
def test_that_fails_as_expected():
    assert False
"""


def suite(folder: Path, *words: str) -> str:
    """The file that a run of the suite leaves, as the command prints it."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: x\n    long: x\n")
    (folder / "test_some.py").write_text(SUITE)
    (folder / "test_absent.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    env = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "TESTS_SKIPPED": str(folder / "skipped")}
    # The plugins that it needs, and none of the others, whose imports take seconds.
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "tests.skipped,xdist.plugin"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu and not long", *words]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    command = [sys.executable, "-m", "tests.skipped", str(folder / "skipped")]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("words", [("-n", "0"), ("-n", "2")], ids=["one process", "two processes"])
def test_every_test_that_did_not_run_is_named_once_with_its_reason(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert suite(tmp_path, *words).splitlines() == [
        "skipped tests: 5",
        "  could not import 'no_such_module': No module named 'no_such_module'",
        "    test_absent.py",
        "  needs a CUDA device",
        "    test_some.py::test_on_a_gpu",
        "  no curl",
        "    test_some.py::test_without_its_program",
        "  only root has to change user",
        "    test_some.py::test_of_root",
        "  takes longer than CI has: make test-long",
        "    test_some.py::test_of_an_hour",
    ]


def test_many_tests_of_one_file_are_counted() -> None:
    lines = [f"needs a CUDA device\ttests/test_gpu.py::test_{number}" for number in (1, 2, 3, 4, 5, 5)]
    assert summary(lines) == "skipped tests: 5\n  needs a CUDA device\n    tests/test_gpu.py: 5 tests"
    assert summary([]) == "no test was skipped"
