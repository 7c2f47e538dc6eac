"""Where something came from and what it went into, across artifacts, replies, comparisons, raters and deployments.

A graph of facts in the database: from a reply to its weights, their preference model, its comparison set, and the
comparisons and raters in it; and from a rater forward to every artifact, deployment and served reply.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.config import ComparisonsSection
from orchestrator.data.comparison_sql import membership_query
from orchestrator.errors import ArtifactError
from orchestrator.store import ledger
from orchestrator.store.lineage_graph import Lineage, Node


def lineage(session: Session, reference: str) -> Lineage:
    """The lineage of an artifact (id or digest), `candidate:ID` or `message:ID`, `comparison:ID`, `rater:ID` or handle.

    Raises:
        ArtifactError: there is nothing of that name.
    """
    kind, colon, name = reference.partition(":")
    builders = {
        "candidate": _Builder.candidate,
        "message": _Builder.message,
        "comparison": _Builder.comparison,
        "rater": _Builder.rater,
    }
    if not colon or kind not in builders:
        try:
            artifact = ledger.resolve(session, reference)
        except ArtifactError as error:
            forms = "candidate:ID (a reply), message:ID, comparison:ID, rater:ID or rater:HANDLE"
            raise ArtifactError(f"{error} What is no artifact: {forms}; `orchestrator rater read` tells ids.") from None
        builder = _Builder(session, f"artifact:{artifact.id}")
        builder.artifacts_up([artifact.id])
        builder.artifacts_down([artifact.id])
        return builder.graph
    if kind == "rater":
        found = session.execute(select(t.Rater.id).where(t.Rater.handle == name)).scalar_one_or_none()
        name = str(found) if found is not None else name
    if not name.isdecimal() or len(name) > 18:
        raise ArtifactError(f"No {kind} {name!r}; expected {kind}: and its id, e.g. {kind}:12.")
    builder = _Builder(session, f"{kind}:{name}")
    builders[kind](builder, int(name))
    return builder.graph


class _Builder:
    """Walks the tables and fills the graph."""

    def __init__(self, session: Session, subject: str) -> None:
        self.session = session
        self.graph = Lineage(subject)

    def candidate(self, candidate_id: int) -> None:
        """A reply, from its weights on; and forward through the comparisons of its pair."""
        self._reply(self._get(t.Candidate, candidate_id, "candidate"))
        for comparison in self._comparisons_of(candidate_id):
            self._add_comparison(comparison)
            self.graph.connect(f"candidate:{candidate_id}", f"comparison:{comparison.id}", "compared")
            self._sets_with(comparison_id=comparison.id, child_of=f"comparison:{comparison.id}")

    def message(self, message_id: int) -> None:
        """A message: the reply it was, where it was one; else the rater who wrote it; forward, what answered it."""
        message = self._get(t.Message, message_id, "message")
        facts = {"dialogue_id": message.dialogue_id, "role": message.role, "candidate_id": message.candidate_id}
        self.graph.add(Node(f"message:{message_id}", "message", f"message {message_id} ({message.role})", facts))
        if message.candidate_id is not None:
            self.candidate(message.candidate_id)
            self.graph.connect(f"candidate:{message.candidate_id}", f"message:{message_id}", "became")
        dialogue = self.session.get_one(t.Dialogue, message.dialogue_id)
        if message.role == "user" and dialogue.rater_id is not None:
            self._add_rater(dialogue.rater_id)
            self.graph.connect(f"rater:{dialogue.rater_id}", f"message:{message_id}", "written by")
        answers = select(t.Candidate).join(t.Pair).where(t.Pair.parent_id == message_id).order_by(t.Candidate.id)
        for candidate in self.session.execute(answers).scalars():
            self._reply(candidate)
            self.graph.connect(f"message:{message_id}", f"candidate:{candidate.id}", "answered by")
        query = select(t.Comparison).join(t.Pair).where(t.Pair.parent_id == message_id).order_by(t.Comparison.id)
        for comparison in self.session.execute(query).scalars():
            self._add_comparison(comparison)
            self.graph.connect(f"message:{message_id}", f"comparison:{comparison.id}", "asked")
            self._sets_with(comparison_id=comparison.id, child_of=f"comparison:{comparison.id}")

    def comparison(self, comparison_id: int) -> None:
        """A comparison: who made it, of which replies by which weights; and the sets that hold it."""
        comparison = self._get(t.Comparison, comparison_id, "comparison")
        self._add_comparison(comparison)
        self._add_rater(comparison.rater_id)
        self.graph.connect(f"rater:{comparison.rater_id}", f"comparison:{comparison_id}", "made by")
        query = select(t.Candidate).where(t.Candidate.pair_id == comparison.pair_id).order_by(t.Candidate.side)
        for candidate in self.session.execute(query).scalars():
            self._reply(candidate)
            self.graph.connect(f"candidate:{candidate.id}", f"comparison:{comparison_id}", f"side {candidate.side}")
        self._sets_with(comparison_id=comparison_id, child_of=f"comparison:{comparison_id}")

    def rater(self, rater_id: int) -> None:
        """A rater, forward: every comparison set with a comparison of theirs, and what came of it."""
        self._get(t.Rater, rater_id, "rater")
        self._add_rater(rater_id)
        self._sets_with(rater_id=rater_id, child_of=f"rater:{rater_id}")

    def artifacts_up(self, ids: list[int]) -> None:
        """Add the artifacts and all their ancestors, and the raters of the comparison sets among them."""
        edge = t.LineageEdge
        walk = select(edge.child_id, edge.role, edge.parent_id).where(edge.child_id.in_(ids)).cte(recursive=True)
        walk = walk.union(
            select(edge.child_id, edge.role, edge.parent_id).join(walk, walk.c.parent_id == edge.child_id)
        )
        self._add_edges(ids, self.session.execute(select(walk)).all())
        for artifact in self._artifacts(ids, [row.parent_id for row in self.session.execute(select(walk))]):
            if artifact.kind == "comparison_set":
                self._raters_of(artifact)

    def artifacts_down(self, ids: list[int]) -> None:
        """Add the artifacts and all their descendants, and where those answered raters."""
        edge = t.LineageEdge
        walk = select(edge.child_id, edge.role, edge.parent_id).where(edge.parent_id.in_(ids)).cte(recursive=True)
        walk = walk.union(
            select(edge.child_id, edge.role, edge.parent_id).join(walk, walk.c.child_id == edge.parent_id)
        )
        rows = self.session.execute(select(walk)).all()
        self._add_edges(ids, rows)
        reached = {*ids, *(row.child_id for row in rows)}
        query = (
            select(t.Deployment, func.count(t.Candidate.id))
            .outerjoin(t.Candidate, t.Candidate.deployment_id == t.Deployment.id)
            .where(t.Deployment.snapshot_id.in_(reached))
            .group_by(t.Deployment.id)
            .order_by(t.Deployment.id)
        )
        for deployment, num_replies in self.session.execute(query):
            self._add_deployment(deployment, num_replies)
            self.graph.connect(f"artifact:{deployment.snapshot_id}", f"deployment:{deployment.id}", "deployed")

    def _add_edges(self, ids: list[int], rows: Iterable[Any]) -> None:
        edges = sorted(rows, key=lambda row: (row.child_id, row.role))
        self._artifacts(ids, [id for row in edges for id in (row.child_id, row.parent_id)])
        for row in edges:
            self.graph.connect(f"artifact:{row.parent_id}", f"artifact:{row.child_id}", row.role)

    def _artifacts(self, *groups: list[int]) -> list[t.Artifact]:
        wanted = {id for group in groups for id in group}
        query = (
            select(t.Artifact, t.Cycle.number)
            .outerjoin(t.Cycle, t.Cycle.id == t.Artifact.cycle_id)
            .where(t.Artifact.id.in_(wanted))
            .order_by(t.Artifact.id)
        )
        found = []
        for artifact, cycle in self.session.execute(query):
            found.append(artifact)
            label = f"artifact {artifact.id}, {artifact.kind} {artifact.digest[:19]}"
            facts = {
                "id": artifact.id,
                "digest": artifact.digest,
                "fingerprint": artifact.fingerprint,
                "cycle": cycle,
                "code_revision": artifact.code_revision,
                "created_at": artifact.created_at.isoformat(),
            }
            label += "" if cycle is None else f", cycle {cycle}"
            self.graph.add(Node(f"artifact:{artifact.id}", artifact.kind, label, facts))
        return found

    def _raters_of(self, artifact: t.Artifact) -> None:
        """The raters of a comparison set, most comparisons first, with the ids of their comparisons in it."""
        for rater_id, ids in self._members(artifact):
            self._add_rater(rater_id)
            self.graph.connect(f"rater:{rater_id}", f"artifact:{artifact.id}", "comparisons", comparison_ids=ids)

    def _sets_with(self, *, child_of: str, comparison_id: int | None = None, rater_id: int | None = None) -> None:
        """Connect the comparison sets that hold a comparison, or any of a rater, and what came of them."""
        query = select(t.Artifact).where(t.Artifact.kind == "comparison_set").order_by(t.Artifact.id)
        for artifact in self.session.execute(query).scalars().all():
            for _, ids in self._members(artifact, comparison_id=comparison_id, rater_id=rater_id):
                self.artifacts_down([artifact.id])
                of_rater = None if rater_id is None else ids
                self.graph.connect(child_of, f"artifact:{artifact.id}", "comparisons", of_rater)

    def _members(
        self, artifact: t.Artifact, *, comparison_id: int | None = None, rater_id: int | None = None
    ) -> list[tuple[int, list[int]]]:
        freeze_id = artifact.settings.get("freeze_id")
        if freeze_id is None:
            return []
        section = ComparisonsSection.model_validate(
            {key: value for key, value in artifact.settings.items() if key in ComparisonsSection.model_fields}
        )
        statement, parameters = membership_query(section, freeze_id, comparison_id=comparison_id, rater_id=rater_id)
        cursor = self.session.connection().connection.cursor()
        cursor.execute(statement, parameters)
        return [(rater, list(ids)) for rater, ids in cursor.fetchall()]

    def _reply(self, candidate: t.Candidate) -> None:
        key = f"candidate:{candidate.id}"
        pair = self.session.get_one(t.Pair, candidate.pair_id)
        facts = {
            "id": candidate.id,
            "pair_id": pair.id,
            "dialogue_id": pair.dialogue_id,
            "side": candidate.side,
            "contestant": candidate.contestant,
            "written_by": candidate.written_by_id,
            "details": candidate.details,
            "seed": candidate.seed,
            "sampling": candidate.sampling,
        }
        self.graph.add(Node(key, "reply", f"reply {candidate.id} (side {candidate.side} of pair {pair.id})", facts))
        if candidate.snapshot_id is not None:
            self.artifacts_up([candidate.snapshot_id])
            self.graph.connect(f"artifact:{candidate.snapshot_id}", key, "weights")
        if candidate.contestant_id is not None:
            judge_id = self.session.get_one(t.Contestant, candidate.contestant_id).preference_model_id
            if judge_id is not None:
                self.artifacts_up([judge_id])
                self.graph.connect(f"artifact:{judge_id}", key, "chosen by")
        if candidate.deployment_id is not None:
            deployment = self.session.get_one(t.Deployment, candidate.deployment_id)
            count = select(func.count()).select_from(t.Candidate).where(t.Candidate.deployment_id == deployment.id)
            self._add_deployment(deployment, self.session.execute(count).scalar_one())
            self.graph.connect(f"deployment:{deployment.id}", key, "served by")

    def _comparisons_of(self, candidate_id: int) -> list[t.Comparison]:
        query = (
            select(t.Comparison)
            .join(t.Candidate, t.Candidate.pair_id == t.Comparison.pair_id)
            .where(t.Candidate.id == candidate_id)
            .order_by(t.Comparison.id)
        )
        return list(self.session.execute(query).scalars())

    def _add_comparison(self, comparison: t.Comparison) -> None:
        facts = {
            "id": comparison.id,
            "pair_id": comparison.pair_id,
            "rater_id": comparison.rater_id,
            "side": comparison.side,
            "strength": comparison.strength,
            "freeze_id": self._freeze_of(comparison.id),
        }
        label = f"comparison {comparison.id} (side {comparison.side})"
        self.graph.add(Node(f"comparison:{comparison.id}", "comparison", label, facts))

    def _freeze_of(self, comparison_id: int) -> int | None:
        run = t.FrozenComparison
        query = select(run.freeze_id).where(text("int8range(first_id, last_id, '[]') @> cast(:id as bigint)"))
        return self.session.execute(query, {"id": comparison_id}).scalar_one_or_none()

    def _add_rater(self, rater_id: int) -> None:
        rater = self.session.get_one(t.Rater, rater_id)
        facts = {"id": rater.id, "handle": rater.handle, "kind": rater.kind, "status": rater.status}
        self.graph.add(Node(f"rater:{rater_id}", "rater", f"rater {rater_id} ({rater.handle})", facts))

    def _add_deployment(self, deployment: t.Deployment, num_replies: int) -> None:
        ended = deployment.ended_at
        facts = {
            "id": deployment.id,
            "snapshot_id": deployment.snapshot_id,
            "started_at": deployment.started_at.isoformat(),
            "ended_at": None if ended is None else ended.isoformat(),
            "num_replies": num_replies,
        }
        until = "live now" if ended is None else f"until {ended:%Y-%m-%d %H:%M}"
        label = (
            f"deployment {deployment.id}, from {deployment.started_at:%Y-%m-%d %H:%M}, {until}, {num_replies} replies"
        )
        self.graph.add(Node(f"deployment:{deployment.id}", "deployment", label, facts))

    def _get(self, table: Any, id: int, name: str) -> Any:
        found = self.session.get(table, id)
        if found is None:
            raise ArtifactError(f"There is no {name} with id {id}.")
        return found
