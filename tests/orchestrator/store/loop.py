"""A turn of the loop in rows, for the tests of what asks for lineage."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import ComparisonsSection
from orchestrator.data import freeze
from tests.db.rows import add_artifact, add_comparison, add_cycle, add_dialogue, add_pair, add_rater, close


class Loop:
    """A turn of the loop in rows: initial policy, comparisons of its replies, comparison set, PM, snapshot, replies."""

    def __init__(self, session: Session) -> None:
        section = ComparisonsSection()
        self.anna, self.ben = add_rater(session, "anna"), add_rater(session, "ben")
        self.initial = add_artifact(session, "initial_policy")
        self.one = self.compared(session, self.anna, self.initial)
        self.two = self.compared(session, self.anna, self.initial, side="b")
        self.left_out = self.compared(session, self.ben, self.initial, side="none", reason="tie")
        cycle = add_cycle(session)
        frozen = freeze.freeze(session, cycle.id)
        settings = section.model_dump() | {"freeze_id": frozen.id, "freeze": freeze.freeze_digest(frozen)}
        self.set = add_artifact(session, "comparison_set", settings=settings, cycle_id=cycle.id)
        self.pm = add_artifact(session, "preference_model")
        self.snapshot = add_artifact(session, "snapshot")
        for child, role, parent in (
            (self.pm, "comparisons", self.set),
            (self.pm, "initial", self.initial),
            (self.snapshot, "preference_model", self.pm),
            (self.snapshot, "initial", self.initial),
        ):
            session.add(t.LineageEdge(child_id=child.id, role=role, parent_id=parent.id))
        decision = t.Decision(
            snapshot_id=self.snapshot.id, decision="promote", reasons=[], evidence={}, decided_by="gates"
        )
        session.add(decision)
        session.flush()
        self.deployment = t.Deployment(snapshot_id=self.snapshot.id, decision_id=decision.id)
        session.add(self.deployment)
        session.flush()
        close(session, cycle)
        self.late = self.compared(session, self.ben, self.snapshot, deployment=self.deployment)

    @staticmethod
    def compared(session: Session, rater: t.Rater, snapshot: t.Artifact, deployment=None, side="a", **fields):
        _, messages = add_dialogue(session, "Hello", rater_id=rater.id)
        weights = {f"{s}_snapshot_id": snapshot.id for s in "ab"}
        served = {} if deployment is None else {f"{s}_deployment_id": deployment.id for s in "ab"}
        pair, _, _ = add_pair(session, messages[0], **weights, **served)
        return add_comparison(session, pair=pair, rater=rater, side=side, **fields)
