"""The log and the decisions can be looked things up in: what is cited exists, and every entry has its form."""

import re
from datetime import date
from pathlib import Path

import pytest

from tests.paths import PROJECT_ROOT

LOG = PROJECT_ROOT / "docs" / "log"
DECISIONS = PROJECT_ROOT / "docs" / "decisions"

TEXTS = [
    path
    for pattern in (
        "*.md",
        "*.toml",
        "docs/**/*.md",
        "examples/*.toml",
        *(
            f"{folder}/**/*.py"
            for folder in ("benchmarks", "db", "flows", "migrations", "models", "orchestrator", "tests")
        ),
    )
    for path in sorted(PROJECT_ROOT.glob(pattern))
    if path != Path(__file__).resolve()
]

ENTRY = re.compile(r"## (\d{4}-\d{2}-\d{2}): (\S.*)")
MENTION = re.compile(r"docs/log/(?!README)[\w-]+\.md")
# A heading may go on in the next line, behind the mark of a comment. Between file and heading a Markdown link may
# close, and a quoted string may end.
CITATION = re.compile(r"docs/log/([\w-]+)\.md(?:\]\([^)]*\))?,\s+\"([^\"]+)\"")
LONGEST_LINE = 120
DECISION_PARTS = ["Context", "Decision", "What it costs", "Measured", "Consequences", "Where"]


def flowing(text: str) -> str:
    """The text with its lines joined, marks of comments left out."""
    return re.sub(r"\s*\n\s*(?:#\s+)?", " ", text)


def entries(path: Path) -> list[tuple[date, str, str]]:
    """Day, heading and result line of each entry of a file of the log, in the order in which they stand."""
    lines = path.read_text().splitlines()
    found = []
    for heading, result in zip(lines, [*lines[1:], ""], strict=True):
        if heading.startswith("## "):
            match = ENTRY.fullmatch(heading)
            assert match, f"{path.name}: {heading!r} is not '## YYYY-MM-DD: what was tried'"
            found.append((date.fromisoformat(match[1]), match[2], result))
    return found


def subjects() -> list[Path]:
    return sorted(path for path in LOG.glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("path", subjects(), ids=lambda path: path.stem)
def test_entries_of_the_log_have_a_day_a_result_and_stand_newest_first(path):
    found = entries(path)
    assert found
    days = [day for day, _, _ in found]
    assert days == sorted(days, reverse=True)
    headings = [heading for _, heading, _ in found]
    assert len(set(headings)) == len(headings), "a citation names one entry"
    for _, heading, result in found:
        assert re.fullmatch(r"\*\*.{20,}\*\*", result), f"{heading}: the line below says in bold what came out"


def test_the_index_of_the_log_lists_every_entry():
    index = (LOG / "README.md").read_text().splitlines()
    listed: dict[str, list[str]] = {}
    for line in index:
        if match := re.fullmatch(r"## \[.+\]\(([\w-]+)\.md\)", line):
            listed[match[1]] = []
        elif line.startswith("- "):
            listed[list(listed)[-1]].append(line.removeprefix("- "))
    assert listed == {path.stem: [f"{day}: {heading}" for day, heading, _ in entries(path)] for path in subjects()}


def test_what_is_cited_of_the_log_exists():
    headings = {path.stem: {heading for _, heading, _ in entries(path)} for path in subjects()}
    cited = 0
    for path in TEXTS:
        text = flowing(path.read_text())
        where = path.relative_to(PROJECT_ROOT)
        assert not re.search(r"(?<!_)\blog\.md", text), f"{where}: the log is a folder, docs/log/"
        citations = CITATION.findall(text)
        assert len(citations) == len(MENTION.findall(text)), (
            f'{where}: name the entry too, docs/log/ppo.md, "Its heading"'
        )
        for name, heading in citations:
            assert heading in headings.get(name, ()), f'{where}: docs/log/{name}.md has no entry "{heading}"'
        cited += len(citations)
    assert cited >= 10, "the citations are no longer found"


def records() -> list[Path]:
    return sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("path", records(), ids=lambda path: path.stem)
def test_a_decision_says_why_what_at_what_cost_and_where(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith(f"# {path.name[:4]}: ")
    assert re.fullmatch(r"Decided \d{4}-\d{2}-\d{2}\.", lines[2])
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == DECISION_PARTS
    cited = re.findall(r"`((?:orchestrator|models|db|flows|migrations|benchmarks)/[\w./]*)`", path.read_text())
    assert cited
    assert [name for name in cited if not (PROJECT_ROOT / name).exists()] == []


def test_decisions_are_numbered_and_listed():
    assert [path.name[:4] for path in records()] == [f"{number:04}" for number in range(1, len(records()) + 1)]
    expected = []
    for path in records():
        title, _, decided = path.read_text().splitlines()[:3]
        day = decided.removeprefix("Decided ").removesuffix(".")
        expected.append(f"- {day}: [{title.removeprefix('# ')}]({path.name})")
    index = (DECISIONS / "README.md").read_text().splitlines()
    assert [line for line in index if line.startswith("- ")] == expected


def test_no_line_of_log_and_decisions_is_long():
    for path in [*LOG.glob("*.md"), *DECISIONS.glob("*.md")]:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert len(line) <= LONGEST_LINE, f"{path.relative_to(PROJECT_ROOT)}:{number} has {len(line)} characters"
