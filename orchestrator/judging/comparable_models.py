"""Which preference models of the ledger may stand beside one: trained for the same project, on the same kind of thing.

An accuracy says something about size or number of comparisons only where the rest is the same. Models of shuffled
labels are controls and twins watch on a part of the comparisons; neither is ever meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import ModelSummary
from models.runtime.results import result_from_json
from orchestrator.config import ComparisonsSection, PreferenceModelSection, values_of
from orchestrator.store import ledger

# How a model is trained at its size, not what it learns; twins only change the number of comparisons.
TUNING = {
    "learning_rate", "lr_schedule", "warmup_fraction", "batch_pairs", "batch_order", "threads", "precision",
    "twin", "part", "skills", "shuffle_labels", "checkpoint_every", "checkpoint_time_share",
    "forward_tokens", "recompute_activations", "logits_tokens",
}  # fmt: skip
MIX = ("questions", "sources", "harmless_weight")
"""What makes the mix that a model is trained on."""


@dataclass(frozen=True)
class Parent:
    """What a preference model was made from, in one role."""

    digest: str
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Candidate:
    """A preference model's results, and by name what must be the same in models that are compared."""

    id: int
    results: ModelSummary
    traits: Mapping[str, object]
    start: tuple[int, str | None]
    """Number of parameters, and digest of the initial policy: models of one size must begin alike."""


@dataclass(frozen=True)
class Comparable:
    """The results of the models that may stand beside one, in the order in which they were trained."""

    results: list[ModelSummary]
    left_out: dict[str, int]
    """Number of other models by what is different in them; a model counts once."""


def comparable(session: Session, model: t.Artifact, *, any_mix: bool = False) -> Comparable:
    """Every preference model up to this one, itself among them, that differs in size and comparisons at most.

    With `any_mix` questions, sources and their weight may differ, but the size may not.
    """
    candidates = list(_candidates(session, model))
    own = next((candidate for candidate in candidates if candidate.id == model.id), None)
    if own is None:
        return Comparable([], {})
    found = []
    left_out: Counter[str] = Counter()
    for other in candidates:
        difference = _difference(own, other, any_mix)
        if difference is None:
            found.append(other.results)
        else:
            left_out[difference] += 1
    return Comparable(found, dict(sorted(left_out.items())))


def left_out_line(left_out: Mapping[str, int]) -> str:
    """How many models were left out and why; empty where none was."""
    number = sum(left_out.values())
    if number == 0:
        return ""
    reasons = ", ".join(f"other {name}: {count}" for name, count in left_out.items())
    return f"{number} preference model{'s' if number > 1 else ''} of the ledger ({reasons})"


def _difference(own: Candidate, other: Candidate, any_mix: bool) -> str | None:
    """The first thing that keeps two models apart."""
    for name in {**own.traits, **other.traits}:
        if own.traits.get(name) != other.traits.get(name) and not (any_mix and name in MIX):
            return name
    if any_mix and own.start[0] != other.start[0]:
        return "size"
    if own.start[0] == other.start[0] and own.start[1] != other.start[1]:
        return "initial policy"
    return None


def _candidates(session: Session, model: t.Artifact) -> Iterator[Candidate]:
    results = t.Artifact.results
    parts = ("num_parameters", "num_train", "trained_on")
    held_out = ("accuracy", "ci", "n", "design_effect", "by_question", "by_source")
    query = (
        select(
            t.Artifact.id,
            t.Artifact.settings["settings"].label("settings"),
            t.Cycle.name,
            *(results[name].label(name) for name in parts),
            *(results["held_out"][name].label(name) for name in held_out),
        )
        .outerjoin(t.Cycle, t.Cycle.id == t.Artifact.cycle_id)
        .where(t.Artifact.kind == model.kind, t.Artifact.id <= model.id, results.has_key("num_parameters"))
        .where(t.Artifact.settings["settings"]["shuffle_labels"].as_boolean().is_not(True))
        .where(~ledger.is_watcher())
        .order_by(t.Artifact.id)
    )
    rows = session.execute(query).all()
    inputs: dict[int, dict[str, Parent]] = {row.id: {} for row in rows}
    edges = (
        select(t.LineageEdge.child_id, t.LineageEdge.role, t.Artifact.digest, t.Artifact.settings)
        .join(t.Artifact, t.Artifact.id == t.LineageEdge.parent_id)
        .where(t.LineageEdge.child_id.in_(inputs))
    )
    for edge in session.execute(edges):
        inputs[edge.child_id][edge.role] = Parent(edge.digest, edge.settings)
    # A model of before there was a setting was trained with its default.
    defaults = values_of(PreferenceModelSection())
    selected = ComparisonsSection().model_dump(mode="json", exclude={"check_against"})
    for row in rows:
        parents = inputs[row.id]
        settings = defaults | (row.settings or {})
        chosen = dict(parents["comparisons"].settings) if "comparisons" in parents else {}
        sources = {"asked for": chosen.pop("sources", None), "held out": sorted(row.by_source or {})}
        traits = {
            "project": row.name,
            "questions": row.trained_on,
            "sources": sources,
            **{name: value for name, value in settings.items() if name not in TUNING},
            "choice of comparisons": {name: chosen.get(name, value) for name, value in selected.items()}
            | {"sources": None},
            "pre-training": "pmp" in parents,
            "skills": parents["skills"].digest if "skills" in parents else None,
        }
        start = (row.num_parameters, parents["initial"].digest if "initial" in parents else None)
        kept = _known(row, parts) | {"held_out": {"accuracy": None} | _known(row, held_out)}
        summary = result_from_json(ModelSummary, kept, where=f"the results of preference model {row.id}")
        yield Candidate(row.id, summary, traits, start)


def _known(row: Any, names: Iterable[str]) -> dict[str, object]:
    """The columns of these names that results of this age have."""
    return {name: value for name in names if (value := getattr(row, name)) is not None}
