"""docs/reference/report.md explains every row under the title of its section, and no row that there is not."""

from __future__ import annotations

import re

from orchestrator.reports.cycle_text import sections, to_markdown
from orchestrator.reports.remarks import RULES
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
