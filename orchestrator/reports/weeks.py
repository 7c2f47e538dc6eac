"""The weeks so far: of each cycle that decided on a snapshot, the few figures that can be put on one line."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import Accuracy, HeldOutReport, ModelSummary
from models.runtime.results import result_from_json
from orchestrator.judging.elo import EloNumbers
from orchestrator.store import ledger

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Week:
    """A cycle as a point of the picture of the weeks."""

    cycle: int
    decision: str
    elo: float | None = None
    """People's, against the initial policy."""
    elo_ci: Interval | None = None
    score_gain: float | None = None
    """By the cycle's own preference model, over the initial policy, PM units."""
    score_gain_ci: Interval | None = None
    kl_nats: float | None = None
    pm: Accuracy | None = None
    helpful: Accuracy | None = None
    harmless: Accuracy | None = None


def weeks_until(session: Session, number: int) -> tuple[Week, ...]:
    """The cycles up to this number that decided on a snapshot, by their number."""
    newest = (
        select(t.Decision)
        .where(t.Decision.kind == "cycle", t.Decision.evidence.has_key("kl_nats"))
        .ext(distinct_on(t.Decision.cycle_id))
        .order_by(t.Decision.cycle_id, t.Decision.id.desc())
        .subquery()
    )
    rows = session.execute(
        select(t.Cycle.id, t.Cycle.number, newest.c.decision, newest.c.evidence, newest.c.snapshot_id)
        .join(newest, newest.c.cycle_id == t.Cycle.id)
        .where(t.Cycle.number <= number)
        .order_by(t.Cycle.number)
    )
    weeks = []
    for row in rows:
        held_out = _held_out(session, row.id)
        elo = _elo(session, row.id, row.snapshot_id)
        low_high = row.evidence.get("score_gain_ci")
        weeks.append(
            Week(
                cycle=row.number,
                decision=row.decision,
                elo=elo.elo if elo else None,
                elo_ci=elo.ci if elo else None,
                score_gain=row.evidence.get("score_gain"),
                score_gain_ci=tuple(low_high) if low_high and None not in low_high else None,
                kl_nats=row.evidence["kl_nats"],
                pm=_plain(held_out) if held_out else None,
                helpful=held_out.by_question.get("helpful") if held_out else None,
                harmless=held_out.by_question.get("harmless") if held_out else None,
            )
        )
    return tuple(weeks)


def _plain(held_out: Accuracy) -> Accuracy:
    """The accuracy without the rest of its report."""
    return Accuracy(
        accuracy=held_out.accuracy,
        ci=held_out.ci,
        n=held_out.n,
        dialogues=held_out.dialogues,
        design_effect=held_out.design_effect,
    )


def _held_out(session: Session, cycle_id: int) -> HeldOutReport | None:
    model = session.scalars(
        select(t.Artifact)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Stage.state.in_(("done", "found")))
        .where(t.Artifact.kind == "preference_model", ~ledger.is_watcher())
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).first()
    if model is None:
        return None
    return result_from_json(ModelSummary, model.results, where=f"the results of preference model {model.id}").held_out


def _elo(session: Session, cycle_id: int, snapshot_id: int) -> EloNumbers | None:
    found = session.scalars(
        select(t.Evaluation)
        .where(t.Evaluation.cycle_id == cycle_id, t.Evaluation.kind == "elo", t.Evaluation.subject_id == snapshot_id)
        .order_by(t.Evaluation.id.desc())
        .limit(1)
    ).first()
    return result_from_json(EloNumbers, found.numbers, where=f"the numbers of evaluation {found.id}") if found else None
