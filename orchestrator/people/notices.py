"""Announcements from the desk to every rater, and problem reports from raters to the desk."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import OrchestratorError

MAX_CHARS = 4000

# Built once: part of each home page.
_CURRENT = select(t.Announcement.content).where(t.Announcement.ended_at.is_(None)).order_by(t.Announcement.id.desc())


class NoticeError(OrchestratorError):
    """An announcement or report does not exist, or its text can't be used."""


def announce(session: Session, content: str) -> t.Announcement:
    """Tell every rater something, above their tasks, until it is ended.

    Raises:
        NoticeError: nothing was written, or more than `MAX_CHARS` characters.
    """
    announcement = t.Announcement(content=_usable(content))
    session.add(announcement)
    session.flush()
    return announcement


def end_announcement(session: Session, announcement_id: int) -> None:
    """Show an announcement to nobody any more; one that has ended stays as it is."""
    announcement = session.get(t.Announcement, announcement_id, with_for_update=True)
    if announcement is None:
        raise NoticeError(f"There is no announcement {announcement_id}. `orchestrator announce list` shows them.")
    announcement.ended_at = announcement.ended_at or datetime.now(UTC)
    session.flush()


def current_announcements(session: Session) -> list[str]:
    """What raters are to read now, the newest first."""
    return list(session.scalars(_CURRENT))


def report_problem(
    session: Session, rater_id: int, content: str, client_key: str, dialogue_id: int | None = None
) -> None:
    """Keep what a rater reports; the same key again is the same report.

    Raises:
        NoticeError: nothing was written, or more than `MAX_CHARS` characters.
    """
    values = {"rater_id": rater_id, "dialogue_id": dialogue_id, "client_key": client_key, "content": _usable(content)}
    session.execute(insert(t.ProblemReport).values(values).on_conflict_do_nothing())


def handle_report(session: Session, report_id: int) -> None:
    """Mark a report as seen to; one that was stays as it is."""
    report = session.get(t.ProblemReport, report_id, with_for_update=True)
    if report is None:
        raise NoticeError(f"There is no problem report {report_id}. `orchestrator problem list` shows them.")
    report.handled_at = report.handled_at or datetime.now(UTC)
    session.flush()


@dataclass(frozen=True)
class Reported:
    """A problem report and who wrote it."""

    id: int
    rater: str
    """The handle."""
    rater_id: int
    dialogue_id: int | None
    content: str
    created_at: datetime
    handled_at: datetime | None


def problem_reports(session: Session, *, handled: bool = False, limit: int = 1000) -> list[Reported]:
    """Reports that wait, oldest first; or, where `handled`, those seen to, newest first."""
    report = t.ProblemReport
    query = (
        select(
            report.id, t.Rater.handle.label("rater"), report.rater_id, report.dialogue_id, report.content,
            report.created_at, report.handled_at,
        )
        .join(t.Rater, t.Rater.id == report.rater_id)
        .where(report.handled_at.is_not(None) if handled else report.handled_at.is_(None))
        .order_by(report.handled_at.desc() if handled else report.id)
        .limit(limit)
    )  # fmt: skip
    return [Reported(*row) for row in session.execute(query)]


def _usable(content: str) -> str:
    content = content.strip().replace("\0", "")
    if not content:
        raise NoticeError("Nothing was written. Write what is to be said.")
    if len(content) > MAX_CHARS:
        raise NoticeError(f"The text has {len(content):,} characters; at most {MAX_CHARS:,} are kept. Shorten it.")
    return content
