"""docs/reference/report.md explains every row under the title of its section, and no row that there is not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from orchestrator.reports.cycle_text import sections, to_markdown
from orchestrator.reports.remarks import RULES
from tests.orchestrator.published_results import preference_model
from tests.orchestrator.reports.policy_results import BARE_PPO
from tests.orchestrator.reports.whole_cycle import whole_cycle
from tests.paths import PROJECT_ROOT

REFERENCE = (PROJECT_ROOT / "docs" / "reference" / "report.md").read_text(encoding="utf-8")
OF_SOME_CYCLES = {"… begins late"}
"""Rows that stand in the place of others, so that no cycle has all."""


def explained(title: str) -> list[str]:
    """The names in bold at the beginning of the entries below a heading."""
    section = REFERENCE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    entries = re.findall(r"^- ((?:\*\*[^*]+\*\*(?:, )?)+)", section, re.MULTILINE)
    return [name for entry in entries for name in re.findall(r"\*\*([^*]+)\*\*", entry)]


def pattern(name: str) -> re.Pattern[str]:
    """A word in capitals stands for whatever a cycle puts there."""
    return re.compile(re.sub(r"\b[A-Z]{3,}\b", ".+", re.escape(name).replace("\\ ", " ")))


def test_every_row_is_explained_in_its_section_and_every_entry_is_a_row() -> None:
    found = sections(whole_cycle())
    for section in found:
        names = explained(section.title)
        rows = [name for name, _ in section.rows]
        unexplained = [row for row in rows if not any(pattern(name).fullmatch(row) for name in names)]
        assert unexplained == [], section.title
        gone = [name for name in names if not any(pattern(name).fullmatch(row) for row in rows)]
        assert set(gone) <= OF_SOME_CYCLES, section.title
    assert len(found) == 4


def test_no_two_rows_of_a_section_have_one_name() -> None:
    for section in sections(whole_cycle()):
        # Calibration follows accuracy with the same questions; "…" belongs to the row above it.
        full, head = [], ""
        for name, _ in section.rows:
            head = head if name.startswith("…") else name
            full.append((head, name))
        assert len(full) == len(set(full)), section.title


def test_each_section_has_its_heading_and_each_table_says_what_it_holds() -> None:
    text = to_markdown(whole_cycle())
    assert "| | |" not in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {section.title}" for section in sections(whole_cycle())
    ]


def test_every_rule_of_the_remarks_is_explained() -> None:
    names = explained("Remarks")
    assert len(names) == len(set(names)) == len(RULES)


@pytest.mark.parametrize(
    ("parameters", "pm_rate", "ppo", "expected"),
    [
        # A published model with what it gets by its size, and with what somebody gave; adapters get ten times as much.
        (
            268_000_000, 2e-5, {"learning_rate": 3e-6},
            ("2e-05: the default for a model of 268 M weights", "3e-06: the default for a model of 268 M weights"),
        ),
        (
            268_000_000, 1e-3, {"learning_rate": 3e-6, "lora_rank": 8},
            (
                "0.001, where the default for a model of 268 M weights is 2e-05",
                "3e-06, where the default for a model of 268 M weights is 3e-05",
            ),
        ),
        # One that was pretrained here, and a result of before sizes were told.
        (1_000_000, 1e-3, {"learning_rate": 1e-4}, ("0.001", "0.0001")),
        (None, 1e-3, {"learning_rate": 1e-4}, ("0.001", "0.0001")),
    ],
)  # fmt: skip
def test_a_learning_rate_stands_beside_what_is_usual_at_that_size(parameters, pm_rate, ppo, expected) -> None:
    numbers = whole_cycle(
        preference_model=preference_model(num_parameters=parameters, choices={"learning_rate": pm_rate}),
        training=replace(BARE_PPO, settings=ppo),
    )
    rows = dict(row for section in sections(numbers) for row in section.rows)
    assert (rows["PM learning rate"], rows["PPO's learning rate"]) == expected
