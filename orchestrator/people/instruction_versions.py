"""What raters are told before they choose, by question: as shipped with the program, or as written at the desk.

The newest version of the desk's is what raters read and agree to, the shipped one where none was written. A later
release never replaces an operator's text: what it brings is offered at the desk, to begin the next version from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import get_args

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import OrchestratorError
from orchestrator.people.tasks import Question
from orchestrator.people.texts import with_plain_line_ends

LONGEST_TEXT = 1000
LONGEST_PAGE = 20_000
_BETWEEN = "\n---\n"


class InstructionsError(OrchestratorError):
    """Instructions are empty, too long or unchanged, or somebody else saved others meanwhile."""


class InstructionsChanged(InstructionsError):
    """Another version was saved since the one that this text began from."""


@dataclass(frozen=True)
class Instructions:
    """What the rater is told. The version is stored with every pair and consent; another text is another version."""

    question: Question
    version: str
    text: str
    """The gist, plain text in one paragraph."""
    page: str
    """The whole, Markdown."""
    by: str | None = None
    """Who wrote it at the desk; None for a shipped one."""
    at: datetime | None = None

    @property
    def key(self) -> str:
        """Names it among all: a release may ship a version that the desk has given too."""
        return self.version if self.by is not None else f"{self.version}.md"

    @property
    def number(self) -> int:
        """The version's number: 2 of "helpful-2"."""
        return int(self.version.rpartition("-")[2])

    @property
    def origin(self) -> str:
        """Who wrote it and when, in words."""
        if self.by is None or self.at is None:
            return "shipped with the program"
        return f"written by {self.by} on {self.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


@cache
def shipped(question: Question) -> Instructions:
    """The newest version that lies in `instructions/`, which are files like "helpful-1.md"."""
    folder = resources.files("orchestrator.people").joinpath("instructions")
    named = re.compile(rf"({_stem(question)}-\d+)\.md")
    versions = [found.group(1) for file in folder.iterdir() if (found := named.fullmatch(file.name))]
    newest = max(versions, key=lambda version: int(version.rpartition("-")[2]))
    return _parted(question, newest, folder.joinpath(f"{newest}.md").read_text("utf-8"))


def current(session: Session, question: Question) -> Instructions:
    """What raters are told now."""
    newest = select(t.InstructionVersion).where(t.InstructionVersion.task == question)
    row = session.scalars(newest.order_by(t.InstructionVersion.id.desc()).limit(1)).one_or_none()
    return shipped(question) if row is None else _of(row)


def versions(session: Session, question: Question) -> list[Instructions]:
    """All there are, the desk's newest first; the shipped one last."""
    written = select(t.InstructionVersion).where(t.InstructionVersion.task == question)
    rows = session.scalars(written.order_by(t.InstructionVersion.id.desc()))
    return [*(_of(row) for row in rows), shipped(question)]


def version_of(session: Session, question: Question, key: str) -> Instructions:
    """The version of this key.

    Raises:
        InstructionsError: there is none.
    """
    for one in versions(session, question):
        if one.key == key:
            return one
    raise InstructionsError(f"There are no instructions {key!r} about what is {question}; /desk/instructions has all.")


def draft(now: Instructions, began_from: str, text: str, page: str) -> Instructions:
    """A text that may follow `now`, as it would be shown; `began_from` is the key of what was current to its writer.

    Raises:
        InstructionsChanged: another version is current by now.
        InstructionsError: it is empty, too long, or says what `now` says.
    """
    if now.key != began_from:
        raise _changed(now, began_from)
    # Files and rows hold both parts in one, parted by a line that a paragraph can't hold.
    written = replace(now, text=" ".join(_clean(text).split()), page=_clean(page))
    for name, part, longest in (("gist", written.text, LONGEST_TEXT), ("whole text", written.page, LONGEST_PAGE)):
        if not part:
            raise InstructionsError(f"The {name} is empty. Raters read both, so write it.")
        if len(part) > longest:
            raise InstructionsError(f"The {name} has {len(part):,} characters; at most {longest:,} fit. Shorten it.")
    if written == now:
        raise InstructionsError(f"Nothing is changed: this is what {now.version} says. Change it, or leave it.")
    return written


def save(session: Session, question: Question, began_from: str, text: str, page: str, by: str) -> Instructions:
    """Make the next version, which every rater is asked to read and agree to; raises as `draft` does."""
    now = current(session, question)
    written = draft(now, began_from, text, page)
    version = f"{_stem(question)}-{max(now.number, shipped(question).number) + 1}"
    row = session.scalars(
        insert(t.InstructionVersion)
        .values(task=question, version=version, text=f"{written.text}\n{_BETWEEN}\n{written.page}\n", created_by=by)
        .on_conflict_do_nothing(index_elements=["version"])
        .returning(t.InstructionVersion)
    ).one_or_none()
    if row is None:
        # Somebody saved in the same moment: the database gave the version to one of the two.
        raise _changed(current(session, question), began_from)
    return _of(row)


def num_agreed(session: Session, version: str) -> int:
    """How many raters agreed to a version."""
    agreed = select(func.count()).select_from(t.Consent).where(t.Consent.instruction_version == version)
    return session.scalars(agreed).one()


def _changed(now: Instructions, began_from: str) -> InstructionsChanged:
    return InstructionsChanged(
        f"Not saved: {now.version} is what raters read by now, {now.origin}; yours began from "
        f"{began_from.removesuffix('.md')}. Read what is new, change yours where it must, and save again."
    )


def _stem(question: Question) -> str:
    assert question in get_args(Question)
    return question.replace("_", "-")


def _of(row: t.InstructionVersion) -> Instructions:
    parted = _parted(row.task, row.version, row.text)  # type: ignore[arg-type]
    return replace(parted, by=row.created_by, at=row.created_at)


def _parted(question: Question, version: str, written: str) -> Instructions:
    text, _, page = written.partition(_BETWEEN)
    return Instructions(question, version, " ".join(text.split()), page.strip())


def _clean(text: str) -> str:
    return with_plain_line_ends(text.replace("\0", "")).strip()
