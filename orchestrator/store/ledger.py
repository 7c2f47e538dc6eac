"""The ledger: which artifact was asked for by which fingerprint, what went into it, what was measured about it.

Rows only; the files are in `orchestrator/store/artifacts.py`, and the questions one can ask of the graph in
`orchestrator/store/lineage.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import ArtifactError
from orchestrator.store.artifacts import Published

# Fewer digits of a digest are more likely a typing error than a name.
MIN_PREFIX = 6

RUN = "run"
"""The role of a PPO run in the lineage of the snapshots that it kept on its way."""


def fingerprint(kind: str, settings: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """SHA-256 (hex) of what is asked for: kind, settings, and the digest of the input in each role.

    Where it runs, when, by whom and by which revision of the code play no part.
    """
    request = {"kind": kind, "settings": settings, "inputs": inputs}
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_watcher() -> ColumnElement[bool]:
    """Whether an artifact is the twin of a preference model: of its kind, but PPO does not follow it."""
    part = t.Artifact.settings["settings"]["part"].as_string()
    return func.coalesce(part, "") == "watcher"


def find(session: Session, fingerprint: str) -> t.Artifact | None:
    """The newest artifact that was made for this fingerprint."""
    query = select(t.Artifact).where(t.Artifact.fingerprint == fingerprint).order_by(t.Artifact.id.desc()).limit(1)
    return session.execute(query).scalar_one_or_none()


def record(
    session: Session,
    *,
    kind: str,
    fingerprint: str,
    published: Published,
    settings: Mapping[str, object],
    results: Mapping[str, object],
    inputs: dict[str, int],
    cycle_id: int | None,
    code_revision: str | None = None,
) -> t.Artifact:
    """Write down a published artifact and its parents by role. The same fingerprint and digest are the same row."""
    statement = (
        insert(t.Artifact)
        .values(
            kind=kind,
            fingerprint=fingerprint,
            digest=published.digest,
            settings=settings,
            results=results,
            num_bytes=published.num_bytes,
            code_revision=code_revision,
            cycle_id=cycle_id,
        )
        .on_conflict_do_nothing(constraint="uq_artifacts_fingerprint_digest")
        .returning(t.Artifact.id)
    )
    artifact_id = session.execute(statement).scalar_one_or_none()
    if artifact_id is None:
        query = select(t.Artifact).where(t.Artifact.fingerprint == fingerprint, t.Artifact.digest == published.digest)
        return session.execute(query).scalar_one()
    edges = [{"child_id": artifact_id, "role": role, "parent_id": parent} for role, parent in sorted(inputs.items())]
    if edges:
        session.execute(insert(t.LineageEdge), edges)
    return session.get_one(t.Artifact, artifact_id)


def inputs_of(session: Session, artifact_id: int) -> dict[str, int]:
    """The artifacts that an artifact was made from, by role."""
    edges = select(t.LineageEdge.role, t.LineageEdge.parent_id).where(t.LineageEdge.child_id == artifact_id)
    return {edge.role: edge.parent_id for edge in session.execute(edges)}


def record_evaluation(
    session: Session,
    cycle_id: int | None,
    kind: str,
    subject_id: int,
    numbers: Mapping[str, object],
    artifact_id: int | None = None,
) -> t.Evaluation:
    """Append what was measured about an artifact. The same numbers from the same cycle and source are one row."""
    query = (
        select(t.Evaluation)
        .where(
            t.Evaluation.cycle_id.is_not_distinct_from(cycle_id),
            t.Evaluation.kind == kind,
            t.Evaluation.subject_id == subject_id,
            t.Evaluation.artifact_id.is_not_distinct_from(artifact_id),
        )
        .order_by(t.Evaluation.id.desc())
        .limit(1)
    )
    last = session.execute(query).scalar_one_or_none()
    # A tuple comes back from the database as a list; compare and keep what will come back.
    kept = json.loads(json.dumps(numbers))
    if last is not None and last.numbers == kept:
        return last
    row = t.Evaluation(cycle_id=cycle_id, kind=kind, subject_id=subject_id, numbers=kept, artifact_id=artifact_id)
    session.add(row)
    session.flush()
    return row


def not_reproducible(session: Session, digests: list[str]) -> str | None:
    """Why artifacts can't be made or read again, for those of which text was erased; None where all are whole."""
    rows = session.execute(
        select(t.ErasedArtifact.digest, func.sum(t.ErasedArtifact.num_comparisons))
        .where(t.ErasedArtifact.digest.in_(digests))
        .group_by(t.ErasedArtifact.digest)
    ).all()
    if not rows:
        return None
    # The comparison set counts its comparisons; what was made of it only has texts that were blanked.
    number = max(int(count) for _, count in rows)
    return f"not reproducible: {number} comparisons erased" if number else "not reproducible: texts were erased"


def place_of(session: Session, digest: str) -> str:
    """Where the files of an artifact lie: under its digest, or, where text of it was erased, under the newest one."""
    moved = select(t.ErasedArtifact.rewritten_digest).where(t.ErasedArtifact.digest == digest)
    return session.scalars(moved.order_by(t.ErasedArtifact.id.desc()).limit(1)).first() or digest


def check_whole(session: Session, artifacts: list[t.Artifact]) -> None:
    """Refuse artifacts of which text was erased.

    Raises:
        ArtifactError: one of them; it says how many comparisons are gone.
    """
    for artifact in artifacts:
        why = not_reproducible(session, [artifact.digest])
        if why is not None:
            raise ArtifactError(
                f"Artifact {artifact.id} ({artifact.kind}, {artifact.digest[:19]}) is {why}. "
                "A cycle that needs it can't be run again; what it made before stays."
            )


def cycle_not_reproducible(session: Session, cycle_id: int) -> str | None:
    """Why a cycle can't be run again with the same result; None where it can."""
    digests = session.scalars(
        select(t.Artifact.digest)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id)
    ).all()
    return not_reproducible(session, list(digests))


def resolve(session: Session, reference: str | int) -> t.Artifact:
    """The artifact meant by an id, `artifact:ID`, a digest, or the beginning of one (at least six digits).

    Raises:
        ArtifactError: none or several are meant.
    """
    text = str(reference).strip()
    number = text.removeprefix("artifact:")
    if number.isdecimal() and len(number) < 19:
        found = session.get(t.Artifact, int(number))
        if found is not None:
            return found
    prefix = text.removeprefix("sha256:").lower()
    if len(prefix) < MIN_PREFIX or set(prefix) - set("0123456789abcdef"):
        raise ArtifactError(
            f"No artifact {text!r}. Give an id or at least {MIN_PREFIX} digits of a digest; "
            "`orchestrator artifacts` lists them."
        )
    query = select(t.Artifact).where(t.Artifact.digest.startswith(f"sha256:{prefix}")).order_by(t.Artifact.id.desc())
    rows = list(session.execute(query).scalars())
    digests = {row.digest for row in rows}
    if not rows:
        raise ArtifactError(f"No artifact {text!r}; `orchestrator artifacts` lists them.")
    if len(digests) > 1:
        listed = ", ".join(f"{row.id} ({row.kind} {row.digest[:19]})" for row in rows[:5])
        raise ArtifactError(f"{text!r} means {len(digests)} artifacts: {listed}. Give more digits, or the id.")
    return rows[0]


def named_or_newest(
    session: Session,
    reference: str | int | None,
    kinds: Sequence[str],
    *where: ColumnElement[bool],
    newest: Sequence[str] | None = None,
    nothing: str,
) -> t.Artifact:
    """The artifact of one of the kinds that is named, or, where none is, the newest for which `where` holds.

    `newest` are the kinds looked for where none is named; all of `kinds` where not given.

    Raises:
        ArtifactError: none or several are meant, it is of another kind, or, with the message `nothing`, there is none.
    """
    if reference is not None:
        found = resolve(session, reference)
        if found.kind not in kinds:
            raise ArtifactError(f"Artifact {found.id} is of kind {found.kind}; expected {' or '.join(kinds)}.")
        return found
    query = select(t.Artifact).where(t.Artifact.kind.in_(newest or kinds), *where)
    last = session.scalars(query.order_by(t.Artifact.id.desc()).limit(1)).one_or_none()
    if last is None:
        raise ArtifactError(nothing)
    return last


def newest_of(session: Session, cycle_id: int, kind: str) -> str | None:
    """The digest of what the cycle's newest stage of that kind of artifact ended with; None where there is none."""
    return session.scalars(
        select(t.Artifact.digest)
        .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
        .where(t.Stage.cycle_id == cycle_id, t.Artifact.kind == kind)
        .order_by(t.Stage.id.desc())
        .limit(1)
    ).first()


def snapshots_of(session: Session, run_id: int) -> list[t.Artifact]:
    """The snapshots of a run, by the samples that PPO had learned from."""
    rows = session.scalars(
        select(t.Artifact)
        .join(t.LineageEdge, t.LineageEdge.child_id == t.Artifact.id)
        .where(t.LineageEdge.parent_id == run_id, t.LineageEdge.role == RUN, t.Artifact.kind == "snapshot")
    )
    return sorted(rows, key=lambda artifact: int(artifact.results["samples"]))
