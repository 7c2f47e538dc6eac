"""Arena votes: two whole conversations with the same user messages, two models, and who won.

Also the published form of MT-bench's human judgments, which carries the conversations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.data.formats.messages import messages_of
from orchestrator.data.formats.mt_bench import label_kind_of, side_of_winner
from orchestrator.data.formats.records import (
    ImportedComparison,
    RawRecord,
    Refused,
    comparison_of,
    member,
    optional,
)
from orchestrator.data.formats.sides import shared_prompt, side_of

_TEXTS = ("conversation_a", "conversation_b")


def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """One comparison; the dialogue's own name is the question's."""
    side = side_of_winner(record)
    a, b = (messages_of(member(record, key, list), key) for key in _TEXTS)
    if a == b:
        raise Refused("identical_replies", "both conversations are the same")
    prompt = shared_prompt(a, b)
    sides = [
        replace(side_of(messages[len(prompt) :], key), contestant=member(record, model, str))
        for messages, key, model in ((a, "conversation_a", "model_a"), (b, "conversation_b", "model_b"))
    ]
    judge = optional(record, "judge", str)
    question_id = record.get("question_id")
    question_id = int(question_id) if isinstance(question_id, float) and question_id.is_integer() else question_id
    yield comparison_of(
        prompt, sides[0], sides[1], side,
        reason="tie" if side == "none" else None,
        rater=judge,
        label_kind=label_kind_of(judge),
        external_id=str(question_id) if isinstance(question_id, str | int) else None,
        source_value={key: value for key, value in record.items() if key not in _TEXTS},
    )  # fmt: skip
