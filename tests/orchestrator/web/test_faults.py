"""Every process ends by SIGKILL under load, and no acknowledged choice is lost: the benchmark, in small."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import PROJECT_ROOT


@pytest.mark.slow
def test_what_was_acknowledged_survives_the_kill_of_app_policy_server_and_postgres() -> None:
    small = ["--raters", "16", "--seconds", "20", "--pause", "0.4", "0.8", "--kill"]
    done = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "benchmarks" / "raters_load.py"), *small],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SIGKILL:") == 3
    stored, acknowledged = _counts(done.stdout)
    assert stored >= acknowledged > 10


def _counts(printed: str) -> tuple[int, int]:
    """Stored and acknowledged comparisons."""
    (line,) = [line for line in printed.splitlines() if line.endswith("acknowledged")]
    words = line.split()
    return int(words[0]), int(words[3])
