"""Who comes in and stays in: invitations, sessions in a browser, consent, and visits from outside platforms.

Every function works in the caller's transaction. Secrets are stored as digests; they are shown or sent once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import ApiError, OrchestratorError
from orchestrator.people.raters import RaterIdentity, token_digest

SESSION_LIFETIME = timedelta(days=30)
_TOKEN_BYTES = 32

_BY_SESSION = (
    select(t.Rater.id, t.Rater.handle, t.Rater.status)
    .join(t.RaterSession, t.RaterSession.rater_id == t.Rater.id)
    .where(
        t.RaterSession.token_digest == bindparam("digest"),
        t.RaterSession.ended_at.is_(None),
        t.RaterSession.created_at > bindparam("not_before"),
    )
)


class InvitationError(OrchestratorError):
    """An invitation or study does not exist, has ended, or would be unusable."""


@dataclass(frozen=True)
class SignedIn:
    """A rater in one browser."""

    rater: RaterIdentity
    csrf: str
    """Must come with every form of this browser; nobody without its cookie can know it."""


def csrf_token(session_token: str) -> str:
    """What the forms of a session carry: derived from the cookie, so that nothing more is stored."""
    return hmac.new(session_token.encode(), b"csrf", hashlib.sha256).hexdigest()


def signed_in(session: Session, session_token: str | None) -> SignedIn | None:
    """The rater whose session the cookie names; None where it is nobody's or has ended. A banned rater is refused."""
    if not session_token:
        return None
    values = {"digest": token_digest(session_token), "not_before": datetime.now(UTC) - SESSION_LIFETIME}
    row = session.execute(_BY_SESSION, values).one_or_none()
    if row is None:
        return None
    rater = RaterIdentity(row.id, row.handle, row.status)
    if rater.banned:
        raise ApiError(403, "rater_banned", "This rater takes no part any more. Ask the operator about it.")
    return SignedIn(rater, csrf_token(session_token))


def begin_session(session: Session, rater_id: int) -> str:
    """Sign a rater in; returns the cookie's value. Always a new one: a value planted before is worth nothing."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    session.add(t.RaterSession(token_digest=token_digest(token), rater_id=rater_id))
    session.flush()
    return token


def end_session(session: Session, session_token: str) -> None:
    """Sign out: the cookie's value is worth nothing from now on."""
    session.execute(
        update(t.RaterSession)
        .where(t.RaterSession.token_digest == token_digest(session_token), t.RaterSession.ended_at.is_(None))
        .values(ended_at=datetime.now(UTC))
    )


def end_sessions_of(session: Session, rater_id: int) -> None:
    """Sign a rater out everywhere."""
    session.execute(
        update(t.RaterSession)
        .where(t.RaterSession.rater_id == rater_id, t.RaterSession.ended_at.is_(None))
        .values(ended_at=datetime.now(UTC))
    )


def create_invitation(
    session: Session,
    label: str,
    *,
    platform: str | None = None,
    max_uses: int | None = None,
    valid_for: timedelta | None = None,
) -> tuple[t.Invitation, str]:
    """Add an invitation; returns the row and the secret of its link, which can't be had again."""
    if not label.strip():
        raise InvitationError("An invitation needs a label that says whom it is for.")
    if max_uses is not None and max_uses < 1:
        raise InvitationError(f"max_uses is {max_uses}; expected at least 1.")
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    invitation = t.Invitation(
        token_digest=token_digest(token),
        label=label,
        platform=platform,
        max_uses=max_uses,
        expires_at=None if valid_for is None else datetime.now(UTC) + valid_for,
    )
    session.add(invitation)
    session.flush()
    return invitation, token


def end_invitation(session: Session, invitation_id: int) -> None:
    """Let nobody else join by it; who joined stays."""
    ended = session.execute(
        update(t.Invitation)
        .where(t.Invitation.id == invitation_id, t.Invitation.ended_at.is_(None))
        .values(ended_at=datetime.now(UTC))
        .returning(t.Invitation.id)
    ).one_or_none()
    if ended is None and session.get(t.Invitation, invitation_id) is None:
        raise InvitationError(
            f"There is no invitation {invitation_id}. `orchestrator invite list` shows those there are."
        )


def open_invitation(session: Session, token: str, *, lock: bool = False) -> t.Invitation:
    """The invitation that a link names, if somebody may still join by it; an ApiError says why not."""
    query = select(t.Invitation).where(t.Invitation.token_digest == token_digest(token))
    invitation = session.execute(query.with_for_update() if lock else query).scalar_one_or_none()
    if invitation is None:
        raise ApiError(404, "unknown_invitation", "This invitation link is not known here. Ask for a new one.")
    used = session.scalar(
        select(func.count()).select_from(t.InvitationUse).where(t.InvitationUse.invitation_id == invitation.id)
    )
    over = (
        invitation.ended_at is not None
        or (invitation.expires_at is not None and invitation.expires_at <= datetime.now(UTC))
        or (invitation.max_uses is not None and (used or 0) >= invitation.max_uses)
    )
    if over:
        raise ApiError(410, "invitation_over", "This invitation has been used up or has ended. Ask for a new one.")
    return invitation


def join(session: Session, token: str) -> int:
    """Make a new rater by an invitation; returns the rater's id. The link's last use goes to one of two at once."""
    invitation = open_invitation(session, token, lock=True)
    rater = t.Rater(handle=f"rater-{secrets.token_hex(5)}", kind="human", platform=invitation.platform)
    session.add(rater)
    session.flush()
    session.add(t.InvitationUse(rater_id=rater.id, invitation_id=invitation.id))
    session.flush()
    return rater.id


def has_consented(session: Session, rater_id: int, version: str) -> bool:
    """Whether the rater agreed after reading this version of the instructions."""
    query = select(t.Consent.id).where(t.Consent.rater_id == rater_id, t.Consent.instruction_version == version)
    return session.execute(query).first() is not None


def consent(session: Session, rater_id: int, version: str) -> None:
    """Record that the rater read this version and agreed, once."""
    session.execute(
        insert(t.Consent)
        .values(rater_id=rater_id, instruction_version=version)
        .on_conflict_do_nothing(index_elements=["rater_id", "instruction_version"])
    )


# What the platform puts in place of these is who comes, for which study, with which submission.
ENTRY_QUERIES = {
    "prolific": "PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}",
    "mturk": "workerId=${workerId}&assignmentId=${assignmentId}&hitId=${hitId}",
}


def entry_url(base: str, platform: str) -> str:
    """The external URL to enter on a platform; the same for all its studies, as the platform fills in which."""
    return f"{base}/enter/{platform}?{ENTRY_QUERIES[platform]}"


def create_study(
    session: Session, platform: str, external_id: str, completion_code: str, num_comparisons: int
) -> t.Study:
    """Add a study of an outside platform whose people may enter."""
    external_id, completion_code = external_id.strip(), completion_code.strip()
    if platform not in ENTRY_QUERIES:
        raise InvitationError(f"Platform {platform!r} is unknown; expected prolific or mturk.")
    if num_comparisons < 1 or not external_id or not completion_code:
        raise InvitationError("A study needs the platform's id, a completion code and at least 1 comparison.")
    known = select(t.Study.id).where(t.Study.platform == platform, t.Study.external_id == external_id)
    if session.execute(known).first() is not None:
        raise InvitationError(f"Study {external_id!r} of {platform} is there already.")
    study = t.Study(
        platform=platform,
        external_id=external_id,
        completion_code=completion_code,
        num_comparisons=num_comparisons,
    )
    session.add(study)
    session.flush()
    return study


def end_study(session: Session, platform: str, external_id: str) -> None:
    """Let nobody else enter; who is in may finish and get the code."""
    ended = session.execute(
        update(t.Study)
        .where(t.Study.platform == platform, t.Study.external_id == external_id, t.Study.ended_at.is_(None))
        .values(ended_at=datetime.now(UTC))
        .returning(t.Study.id)
    ).one_or_none()
    if ended is None:
        raise InvitationError(f"There is no open study {external_id!r} of {platform}.")


def study_figures(session: Session) -> list[tuple[t.Study, int, int]]:
    """Every study, the newest first, with how many came and how many finished."""
    came, finished = func.count(t.Visit.id), func.count(t.Visit.completed_at)
    rows = session.execute(
        select(t.Study, came, finished)
        .outerjoin(t.Visit, t.Visit.study_id == t.Study.id)
        .group_by(t.Study.id)
        .order_by(t.Study.id.desc())
    )
    return [(study, num_came, num_finished) for study, num_came, num_finished in rows]


def enter(session: Session, platform: str, study_id: str, person_id: str, submission_id: str) -> int:
    """Begin a visit, or go on with it, for a person whom a platform sent; returns the rater's id.

    The same person is the same rater in every study of the platform.
    """
    study = session.execute(
        select(t.Study).where(t.Study.platform == platform, t.Study.external_id == study_id)
    ).scalar_one_or_none()
    if study is None:
        raise ApiError(404, "unknown_study", f"No study {study_id!r} of {platform} is open here. Return it there.")
    handle = f"{platform}/{person_id}"
    session.execute(
        insert(t.Rater)
        .values(handle=handle, kind="human", platform=platform)
        .on_conflict_do_nothing(index_elements=["handle"])
    )
    rater = session.execute(select(t.Rater).where(t.Rater.handle == handle)).scalar_one()
    visit = _visit(session, study.id, submission_id)
    if visit is None:
        if study.ended_at is not None:
            raise ApiError(410, "study_over", "This study has ended. Return your submission on the platform.")
        session.execute(
            insert(t.Visit)
            .values(study_id=study.id, external_id=submission_id, rater_id=rater.id)
            .on_conflict_do_nothing(index_elements=["study_id", "external_id"])
        )
        visit = _visit(session, study.id, submission_id)
    if visit is None or visit.rater_id != rater.id:
        raise ApiError(409, "another_submission", "This submission is another person's. Open your own link again.")
    return rater.id


def _visit(session: Session, study_id: int, submission_id: str) -> t.Visit | None:
    query = select(t.Visit).where(t.Visit.study_id == study_id, t.Visit.external_id == submission_id)
    return session.execute(query).scalar_one_or_none()


@dataclass(frozen=True)
class VisitState:
    """How far a rater is with the newest visit from a platform."""

    platform: str
    num_done: int
    num_wanted: int
    completion_code: str | None
    """There once enough comparisons were made."""


def visit_state(session: Session, rater_id: int) -> VisitState | None:
    """The rater's newest visit, completed now where enough was done; None for who came by no platform."""
    row = session.execute(
        select(t.Visit, t.Study)
        .join(t.Study, t.Study.id == t.Visit.study_id)
        .where(t.Visit.rater_id == rater_id)
        .order_by(t.Visit.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    visit, study = row
    done = session.scalar(
        select(func.count())
        .select_from(t.Comparison)
        .where(t.Comparison.rater_id == rater_id, t.Comparison.created_at >= visit.created_at)
    )
    num_done = done or 0
    if visit.completed_at is None and num_done >= study.num_comparisons:
        visit.completed_at = datetime.now(UTC)
        session.flush()
    code = study.completion_code if visit.completed_at is not None else None
    return VisitState(study.platform, num_done, study.num_comparisons, code)
