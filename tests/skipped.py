"""Which tests were not run, and why: a pytest plugin that writes it down, and the command by which CI ends.

Where `TESTS_SKIPPED` names a file, every run appends a line for each test that it skipped, and for each that it left
out because it needs a GPU or more time than CI has. `python -m tests.skipped FILE` prints them by reason.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

NOT_IN_CI = {"gpu": "needs a CUDA device", "long": "takes longer than CI has: make test-long"}
NAMED_ONE_BY_ONE = 4
"""From so many tests of one file with one reason, the file and their number say as much as the names."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # A failure that is expected counts as skipped in pytest; it ran.
    if report.skipped and not hasattr(report, "wasxfail"):
        _write([(_reason(report), report.nodeid)])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _write([(_reason(report), report.nodeid)])


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for marker, reason in NOT_IN_CI.items():
        _write((reason, item.nodeid) for item in items if item.get_closest_marker(marker))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    found = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(found.removeprefix("Skipped: ").split())


def _write(found: Iterable[tuple[str, str]]) -> None:
    """Append the lines in one write, so that those of two processes don't mix; readers drop what two of them saw."""
    name = os.environ.get("TESTS_SKIPPED")
    lines = "".join(f"{reason}\t{test}\n" for reason, test in found)
    if name and lines:
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(lines)


def summary(lines: Iterable[str]) -> str:
    """The tests by reason: a heading for each, below it the tests, or their file and number where they are many."""
    tests: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in lines:
        reason, test = line.rstrip("\n").split("\t")
        tests[reason][test.partition("::")[0]].add(test)
    if not tests:
        return "no test was skipped"
    shown = [f"skipped tests: {sum(len(ids) for files in tests.values() for ids in files.values())}"]
    for reason, files in sorted(tests.items()):
        shown.append(f"  {reason}")
        for file, ids in sorted(files.items()):
            many = len(ids) > NAMED_ONE_BY_ONE
            shown += [f"    {file}: {len(ids)} tests"] if many else [f"    {test}" for test in sorted(ids)]
    return "\n".join(shown)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    print(summary(given.read_text(encoding="utf-8").splitlines() if given.exists() else []))
