"""Preference model pre-training (PMP): ranked public answers become binary pairs on which a trunk is trained first.

After Askell et al. 2021 as the paper uses it: an answer's score is round(log2(1 + upvotes)), plus 1 where it was
accepted, minus 1 where its votes are negative; each A > B becomes `GOOD: A > BAD: A` and `BAD: B > GOOD: B`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from orchestrator.config import PMPSection
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.data.formats.records import RawRecord, Refused, whole
from orchestrator.data.named_files import records_of
from orchestrator.data.pair_set import PairRecord, comparisons_in, write_pair_set
from orchestrator.data.questions import better_and_worse
from orchestrator.errors import ConfigError

GOOD, BAD = "GOOD: ", "BAD: "
SOURCE = "pmp"


def write_pmp_pairs(files: list[Path], section: PMPSection, out: Path) -> ComparisonSetResults:
    """Write the pairs of the files as a comparison set; returns its counts.

    Raises:
        ConfigError: a file that can't be read, a record in no known format, or no pair at all.
    """
    ranked = (pair for file in files for pair in ranked_pairs(file))
    pairs = (made for pair in ranked for made in (binary(pair) if section.pairs == "binary" else [pair]))
    return write_pair_set(pairs, section.held_out_fraction, out)


def binary(pair: PairRecord) -> list[PairRecord]:
    """The two pairs of a ranked one: `GOOD: A > BAD: A` and `BAD: B > GOOD: B` [43]."""
    better, worse = pair["better"], pair["worse"]
    return [
        {**pair, "id": f"{pair['id']}/good", "better": _marked(better, GOOD), "worse": _marked(better, BAD)},
        {**pair, "id": f"{pair['id']}/bad", "better": _marked(worse, BAD), "worse": _marked(worse, GOOD)},
    ]


def ranked_pairs(file: Path) -> Iterator[PairRecord]:
    """Every A > B of a file: StackExchange questions with their answers' votes, or any format that can be imported.

    Ranked trees give every two ranked siblings; answers of equal score give no pair.

    Raises:
        ConfigError: the file can't be read, or a record has no known shape.
    """
    for number, (where, record) in enumerate(records_of(file, "a question with ranked answers, or comparisons")):
        if "question" in record and "answers" in record:
            found = list(_stack_exchange(record, where))
        else:
            found = []
            for item in comparisons_in(record, where, file):
                a, b = list(item.a.messages()), list(item.b.messages())
                found.append((list(item.prompt), *better_and_worse(item.side, item.question, a, b)))
        for place, (prompt, better, worse) in enumerate(found):
            yield {
                "id": f"{SOURCE}:{file.name}:{number}:{place}",
                "source": f"{SOURCE}:{file.name.split('.')[0]}",
                "question": "helpful",
                "prompt": prompt,
                "better": better,
                "worse": worse,
            }


def answer_score(upvotes: int, accepted: bool) -> int:
    """The score of a StackExchange answer by the paper's rule; `upvotes` is the balance of its votes.

    Worked examples: 0 votes 0; 1 vote 1; 5 votes round(log2 6) = round(2.58) = 3; 5 votes and accepted 4; −2 votes −1.
    """
    score = -1 if upvotes < 0 else round(math.log2(1 + upvotes))
    return score + bool(accepted)


def _stack_exchange(record: RawRecord, where: str) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    try:
        post = record["question"]
        question = post if isinstance(post, str) else f"{post.get('title', '')}\n\n{post.get('body', '')}".strip()
        scored = [(_score(answer), str(answer["text"])) for answer in record["answers"]]
        if not question.strip():
            raise ValueError("the question is empty")
    except (KeyError, TypeError, ValueError, AttributeError, Refused) as error:
        raise ConfigError(
            f"{where} is no question with ranked answers ({type(error).__name__}: {error}); expected "
            '{"question": text, "answers": [{"text", "upvotes", "accepted"}, ...]}.'
        ) from None
    prompt = [{"role": "user", "content": question}]
    # Stable and by score alone: of equals the file's order stays, and they give no pair.
    for (high, a), (low, b) in combinations(sorted(scored, key=lambda entry: -entry[0]), 2):
        if high > low and a != b:
            yield prompt, [{"role": "assistant", "content": a}], [{"role": "assistant", "content": b}]


def _score(answer: RawRecord) -> int:
    if "pm_score" in answer:
        # The published sets of preferences from StackExchange bring the score by this same rule.
        return int(whole(answer["pm_score"], "pm_score"))
    return answer_score(int(whole(answer["upvotes"], "upvotes")), bool(answer.get("accepted", False)))


def _marked(messages: list[Any], mark: str) -> list[Any]:
    *before, last = messages
    return [*before, last | {"content": mark + last["content"]}]
