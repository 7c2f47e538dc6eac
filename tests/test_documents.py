"""The documents can be relied on: links and anchors lead somewhere, paths that they name exist, lines are short."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_LINE = 120
LONGEST_README = 120
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "examples/**/*.md")
    for path in sorted(ROOT.glob(pattern))
]

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
# Our own files, in text, in code or in a command; globs, and what stands for a name (`<...>`, N, NAME), are none.
OURS = re.compile(
    r"(?<![\w./<-])((?:orchestrator|models|db|flows|migrations|benchmarks|tests|docs|examples)/[\w./-]*\w/?)(?![\w<*…{])"
)
PLACEHOLDERS = {"docs/explanation/results/SIZE.json"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for line in FENCE.sub("", path.read_text()).splitlines():
        if match := re.fullmatch(r"#{1,6} (.*)", line):
            text = LINK.sub(lambda link: link[0][1 : link[0].index("]")], match[1]).replace("`", "").strip().lower()
            kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN")
            anchor = slug = "".join(kept).replace(" ", "-")
            number = 1
            while anchor in found:
                anchor, number = f"{slug}-{number}", number + 1
            found.add(anchor)
    return found


def targets(path: Path) -> list[str]:
    """What the links of a page lead to, other sites apart."""
    text = CODE.sub("", FENCE.sub("", path.read_text()))
    return [target for target in LINK.findall(text) if not re.match(r"\w+:", target)]


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# What is `up`, and √KL?\n\n```\n# no heading\n```\n\n## A [link](x.md) here\n\n## Same\n\n## Same\n"
    )
    assert anchors(page) == {"what-is-up-and-kl", "a-link-here", "same", "same-1"}


def test_the_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_no_line_is_long(path):
    long = [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > LONGEST_LINE]
    assert long == [], f"{named(path)}: lines of more than {LONGEST_LINE} characters"


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(path):
    broken = []
    for target in targets(path):
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_of_ours_that_is_named_exists(path):
    # The log keeps the words of its day; its paths are held by the same rule.
    text = path.read_text()
    missing = {name for name in OURS.findall(text) if not (ROOT / name).exists()} - PLACEHOLDERS
    assert missing == set()


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in targets(page):
            place = (page.parent / target.partition("#")[0]).resolve()
            if place.suffix == ".md" and place.exists():
                waiting.append(place)
    assert [named(path) for path in DOCUMENTS if path not in reached] == []
