"""What is live and where the loop is, for everybody who tells it: command, desk, `/health`, Prefect's artifact `live`.

Rows only; when the next cycle begins is Prefect's to know, and is handed in.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, aliased

from db import tables as t
from orchestrator.store.acts import said_of
from orchestrator.store.approvals import NOBODY_DECIDED, Waiting, decision_said, waiting
from orchestrator.store.verdicts import GateRow, asked_because, evidence_said, gate_rows, gates_folded, passed_said

PUT_LIVE = {"roll_back": "rolled back", "by_hand": "put live by hand"}


@dataclass(frozen=True)
class Live:
    """What a deployment put before people, and how it came to that."""

    deployment_id: int
    digest: str
    kind: str
    """Of the artifact: `initial_policy` or `snapshot`."""
    cycle: int | None
    """The number of the cycle that made it live first."""
    since: datetime
    until: datetime | None
    decision: str
    """`initial`, `cycle`, `roll_back` or `by_hand`."""
    why: str
    decided_by: str
    identity: str
    via: str
    preference_model: str | None
    """Digest of the one that it was trained against; None for an initial policy."""
    share: float = 1.0
    """Of the requests that `policy-live` answers."""
    gates: tuple[GateRow, ...] = ()
    """What the gates found before; of an initial policy nothing."""

    @property
    def name(self) -> str:
        """What it is in a few words."""
        what = "initial policy" if self.kind == "initial_policy" else "snapshot"
        return f"{self.digest[:19]} ({what}{'' if self.cycle is None else f', cycle {self.cycle}'})"

    @property
    def decided(self) -> str:
        """Who decided it, and how their name is known."""
        return said_of(self.decided_by, self.identity)

    def to_json(self) -> dict[str, Any]:
        """Its fields, times as text."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class OpenCycle:
    """The cycle that is open, and how far it is."""

    id: int
    number: int
    name: str
    since: datetime
    stage: str | None
    """The stage that began last."""
    stopped: str | None
    """Why that stage failed; None while nothing is known to be wrong."""
    at_work: tuple[str, ...] | None = None
    """The runs and stages that work on it now; None where that was not asked."""
    left: str | None = None
    """How long it still takes, in words, while it is worked on."""
    decided: str | None = None
    """What a person decided about it, and who, while that is to be carried out; None where nothing was decided."""
    how_far: tuple[str, ...] = ()
    """Where its jobs are and how long they still take, in words; empty where that was not asked."""


@dataclass(frozen=True)
class EndedCycle:
    """The cycle that ended last."""

    number: int
    state: str
    ended_at: datetime
    why: str | None
    decision: str | None
    """Who decided about it, and what."""


@dataclass(frozen=True)
class LoopState:
    """What is live, which cycle is open, what waits for a person, and how the last cycle ended."""

    live: Live | None
    open_cycle: OpenCycle | None
    waiting: Waiting | None
    last: EndedCycle | None
    next_slot: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "live": self.live.to_json() if self.live else None,
            "open_cycle": _json(self.open_cycle),
            "waiting": _json(self.waiting),
            "last_cycle": _json(self.last),
            "next_slot": _plain(self.next_slot),
        }


def loop_state(session: Session, next_slot: datetime | None = None) -> LoopState:
    """Where the loop is now."""
    found = waiting(session)
    return LoopState(live_now(session), _open_cycle(session), found[0] if found else None, _last(session), next_slot)


def live_now(session: Session) -> Live | None:
    """What is live; None before the first deployment."""
    found = deployments(session, 1)
    return found[0] if found and found[0].until is None else None


def deployments(session: Session, limit: int) -> list[Live]:
    """What was live, the newest first, what is live among it."""
    policy, model = aliased(t.Artifact), aliased(t.Artifact)
    rows = session.execute(
        select(t.Deployment, t.Decision, policy.digest, policy.kind, t.Cycle.number, model.digest)
        .join(t.Decision, t.Decision.id == t.Deployment.decision_id)
        .join(policy, policy.id == t.Deployment.snapshot_id)
        .outerjoin(t.Cycle, t.Cycle.id == t.Deployment.cycle_id)
        .outerjoin(model, model.id == t.Deployment.preference_model_id)
        .order_by(t.Deployment.id.desc())
        .limit(limit)
    )
    return [
        Live(
            deployment.id,
            digest,
            kind,
            number,
            deployment.started_at,
            deployment.ended_at,
            decision.kind,
            why_said(decision),
            decision.decided_by,
            decision.identity,
            decision.via,
            preference_model,
            gates=() if decision.kind == "initial" else gate_rows(decision.reasons),
        )
        for deployment, decision, digest, kind, number, preference_model in rows
    ]


def why_said(decision: t.Decision) -> str:
    """Why it went live, in a sentence without its full stop; the numbers are in `Live.gates`."""
    if decision.kind in PUT_LIVE:
        return f"{PUT_LIVE[decision.kind]}: {decision.note}"
    if decision.kind == "initial":
        return "nothing was live before"
    found = "; ".join(filter(None, (passed_said(decision.reasons), evidence_said(decision.evidence))))
    return f"approved: {decision.note.rstrip('.')}; {found}" if decision.note else found


def why_promoted(session: Session) -> dict[int, str]:
    """By number of each cycle that was promoted, why and by whom."""
    rows = session.execute(
        select(t.Cycle.number, t.Decision)
        .join(t.Decision, t.Decision.cycle_id == t.Cycle.id)
        .where(t.Cycle.state == "promoted", t.Decision.decision == "promote", t.Decision.kind.in_(("cycle", "initial")))
        .order_by(t.Decision.id)
    )
    return {number: f"{why_said(decision)} ({said_of(decision.decided_by, decision.identity)})"
            for number, decision in rows}  # fmt: skip


def _open_cycle(session: Session) -> OpenCycle | None:
    cycle = session.scalars(select(t.Cycle).where(t.Cycle.state == "open")).one_or_none()
    if cycle is None:
        return None
    # The report is written after what stopped the run.
    newest = session.scalars(
        select(t.Stage)
        .where(t.Stage.cycle_id == cycle.id, t.Stage.name != "write_report")
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).first()
    stopped = _told(newest.error) if newest is not None and newest.state == "failed" else None
    at_stage = newest.name if newest else None
    # What the gates alone decided is carried out by the cycle's own run, which may have been killed.
    decided = _decision_about(session, cycle.id, t.Decision.approval_id.is_not(None))
    return OpenCycle(cycle.id, cycle.number, cycle.name, cycle.started_at, at_stage, stopped, decided=decided)


def _last(session: Session) -> EndedCycle | None:
    cycle = session.scalars(
        select(t.Cycle).where(t.Cycle.state != "open").order_by(t.Cycle.number.desc()).limit(1)
    ).first()
    if cycle is None or cycle.ended_at is None:
        return None
    return EndedCycle(cycle.number, cycle.state, cycle.ended_at, cycle.note, _decision_about(session, cycle.id))


def _decision_about(session: Session, cycle_id: int, *where: ColumnElement[bool]) -> str | None:
    decision = session.scalars(
        select(t.Decision).where(t.Decision.cycle_id == cycle_id, *where).order_by(t.Decision.id.desc()).limit(1)
    ).first()
    return decision_said(decision) if decision is not None else None


def live_said(state: LoopState) -> list[tuple[str, str]]:
    """What is live, as headings and sentences."""
    live = state.live
    if live is None:
        return [("Live", "nothing yet: the first run of a cycle puts the initial policy before people")]
    model = "none: nothing was trained yet" if live.kind == "initial_policy" else "not recorded"
    return [
        ("Live", f"{live.name}, {live.share:.0%} of requests"),
        ("Since", at(live.since)),
        ("Why", live.why),
        ("Decided by", live.decided),
        ("Preference model", live.preference_model[:19] if live.preference_model else model),
    ]


def loop_said(state: LoopState) -> list[tuple[str, str]]:
    """Where the loop is, as headings and sentences, the way on among them."""
    lines = []
    if state.waiting is not None:
        lines.append(("Waits for a decision", waiting_said(state.waiting)))
    elif state.open_cycle is not None:
        lines.append(("Open cycle", _open_said(state.open_cycle)))
        if state.open_cycle.how_far:
            lines.append(("How far", "; ".join(state.open_cycle.how_far)))
    else:
        lines.append(("Open cycle", "none"))
    if state.last is not None:
        why = f": {state.last.why}" if state.last.why else ""
        lines.append(
            ("Last cycle", f"cycle {state.last.number} ended {state.last.state} at {at(state.last.ended_at)}{why}")
        )
        if state.last.decision is not None:
            lines.append(("Decided", state.last.decision))
    if state.next_slot is not None:
        lines.append(("Next cycle", at(state.next_slot)))
    return lines


def waiting_said(one: Waiting) -> str:
    """What waits for a decision, and until when."""
    return f"cycle {one.cycle}, snapshot {one.digest[:19]}, until {at(one.expires_at)}; {asked(one)}"


def asked(one: Waiting) -> str:
    """Why a person is asked, in plain words."""
    return asked_because(one.reasons, one.why)


def how_to_decide(one: Waiting) -> str:
    """The three ways to decide."""
    return (
        "Decide with the Prefect deployment `decide-promotion`, at the desk under Live, or by `orchestrator cycle "
        f"decide {one.cycle} promote|refuse --reason TEXT`. Afterwards it is refused: {NOBODY_DECIDED}."
    )


def _open_said(cycle: OpenCycle) -> str:
    begun = f"cycle {cycle.number} ({cycle.name}), open since {at(cycle.since)}"
    if cycle.at_work:
        left = f"; {cycle.left}" if cycle.left else ""
        return f"{begun}; at work: {', '.join(cycle.at_work)}{left}"
    if cycle.decided is not None and cycle.stopped is None:
        # Nothing may work on it for a moment; a run begins by itself, and nobody has to do anything.
        return f"{begun}; {cycle.decided}; it is being carried out"
    where = f"at {cycle.stage or 'its beginning'}"
    if cycle.stopped is not None:
        where = f"stopped {where}: {cycle.stopped.rstrip('.')}"
    elif cycle.at_work is not None:
        where = f"{where}, and nothing works on it"
    else:
        return f"{begun}, {where}"
    return (
        f"{begun}, {where}. No other cycle begins before it ends: run it again with its configuration, or give it up "
        f"with the Prefect deployment `cancel-cycle` or `orchestrator cycle cancel {cycle.number}`"
    )


def at(time: datetime) -> str:
    """A time as people read it; all of them are UTC."""
    return f"{time:%a %Y-%m-%d %H:%M} UTC"


def to_text(state: LoopState) -> str:
    """Everything as lines for a terminal."""
    lines = [f"{heading}: {said}" for heading, said in [*live_said(state), *loop_said(state)]]
    if state.waiting is not None:
        lines.append(how_to_decide(state.waiting))
    return "\n".join(lines)


def in_a_line(state: LoopState) -> str:
    """What is live and where the loop is, as a list of artifacts has room for it."""
    live = "nothing yet" if state.live is None else f"{state.live.name}, since {at(state.live.since)}"
    heading, said = loop_said(state)[0]
    return f"Live: {live}. {heading}: {said}."


def to_markdown(state: LoopState, links: dict[str, str] | None = None) -> str:
    """Everything as Prefect's artifact shows it; `links` are addresses by what they are called."""
    rows = [f"- **{heading}**: {said}" for heading, said in [*live_said(state), *loop_said(state)]]
    if state.waiting is not None:
        rows += ["", how_to_decide(state.waiting)]
    elif state.live is not None:
        rows += ["", "To go back to what was live before: the Prefect deployment `roll-back`."]
    gates = state.waiting.reasons if state.waiting else None
    rows += ["", *gates_folded(gate_rows(gates) if gates else state.live.gates if state.live else ())]
    rows += ["", *(f"[{name}]({url})" for name, url in (links or {}).items())]
    return "\n".join(rows).rstrip() + "\n"


def _told(error: str | None) -> str | None:
    """The first line of a stage's error, without the name of the class that it was raised as."""
    if not error or not error.strip():
        return None
    return re.sub(r"^[A-Z]\w*: ", "", error.strip().splitlines()[0])[:300]


def _json(found: Any) -> dict[str, Any] | None:
    return None if found is None else {key: _plain(value) for key, value in asdict(found).items()}


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
