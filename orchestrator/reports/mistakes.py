"""The texts of the preference model's most confident mistakes, read from the comparison set when somebody asks.

The preference model's artifact names them by id alone: what a rater has had erased is gone from the comparison set, and
so from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from models.preference.results import Mistake
from models.runtime.results import IF_MEASURED
from orchestrator.data.comparison_records import records
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore

Messages = list[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class ShownMistake(Mistake):
    """A mistake with the texts of the comparison; without them where the set is gone."""

    prompt: Messages | None = field(default=None, metadata=IF_MEASURED)
    better: Messages | None = field(default=None, metadata=IF_MEASURED)
    worse: Messages | None = field(default=None, metadata=IF_MEASURED)


def with_texts(
    session: Session, store: ArtifactStore, cycle_id: int, mistakes: Sequence[Mistake]
) -> list[ShownMistake]:
    """The mistakes with what the comparison set of the cycle still holds of them."""
    digest = ledger.newest_of(session, cycle_id, "comparison_set")
    if digest is None:
        return [ShownMistake(**vars(mistake)) for mistake in mistakes]
    # An erasure wrote the set anew elsewhere, with what is left.
    place = ledger.place_of(session, digest)
    texts = {
        record["id"]: (record["prompt"], record["better"], record["worse"])
        for record in records(store.fetch(place), ids={mistake.id for mistake in mistakes})
    }
    shown = []
    for mistake in mistakes:
        prompt, better, worse = texts.get(mistake.id, (None, None, None))
        shown.append(ShownMistake(**vars(mistake), prompt=prompt, better=better, worse=worse))
    return shown


def to_text(mistakes: Sequence[ShownMistake]) -> str:
    """The mistakes as an operator reads them in a terminal."""
    if not mistakes:
        return "The preference model orders every held-out comparison rightly.\n"
    blocks = []
    for mistake in mistakes:
        head = (
            f"comparison {mistake.id} ({mistake.source}, {mistake.question}): the worse reply scores "
            f"{mistake.worse_score:.2f}, the better one {mistake.better_score:.2f}"
        )
        lines = [head]
        for messages, title in ((mistake.prompt, ""), (mistake.better, "BETTER, "), (mistake.worse, "WORSE, ")):
            lines += [f"  {title}{message['role']}: {message['content']}" for message in messages or []]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
