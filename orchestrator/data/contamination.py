"""Which comparisons hold a text of an evaluation, and which stand in a set more than once. Pure; cost grows linearly.

Texts are compared after `db.split.normalised` (lower case, no punctuation). Two overlap where a person's message *is*
the other text, or where any message shares a run of 13 words with it (Brown et al. 2020, arXiv:2005.14165, appendix
C). `check.py` reads the files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from db.split import normalised

RUN_WORDS = 13
NUM_EXAMPLES = 20

How = Literal["message", "run"]
"""A person's message is the text; or a message shares a run of words with it."""


@dataclass(frozen=True, slots=True)
class CheckedComparison:
    """What the checks need of a comparison: its prompt, and what each side adds to it, the better one first."""

    id: str
    part: str
    prompt: Sequence[Any]
    better: Sequence[Any]
    worse: Sequence[Any]
    rater: str | None = None
    contestants: tuple[str | None, str | None] = (None, None)
    """What wrote the better and the worse reply, where the source says."""
    decided: bool = True
    """Whether one of the two was preferred."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A message as hashes: of the whole normalised text, and of every run of 13 words in it."""

    whole: int
    runs: tuple[int, ...]


def fingerprint(text: str) -> Fingerprint:
    """The hashes of one message; they are comparable within one process only."""
    plain = normalised(text)
    return Fingerprint(hash(plain), run_hashes(plain.split()))


def run_hashes(words: Sequence[str], length: int = RUN_WORDS) -> tuple[int, ...]:
    """A hash per run of `length` successive words, none where there are fewer.

    Σ_j h(word_j)·B^j modulo 2^64, for all runs at once: the cost of a run does not grow with its length in characters.
    """
    number = len(words) - length + 1
    if number < 1:
        return ()
    hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    total = np.zeros(number, dtype=np.uint64)
    for j in range(length):
        total += hashes[j : j + number] * _POWERS[j]
    return tuple(total.tolist())


def _powers() -> Any:
    powers, power = [], 1
    for _ in range(RUN_WORDS):
        powers.append(power)
        power = power * 0x9E3779B97F4A7C15 % 2**64
    return np.array(powers, dtype=np.uint64)


_POWERS = _powers()


class TextIndex:
    """The texts of one file, by which comparisons are recognised."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_texts = 0
        self._whole: dict[int, int] = {}
        self._runs: dict[int, int] = {}

    def add(self, texts: Iterable[str]) -> None:
        """One record of the file: its texts count as one when they are met."""
        for text in texts:
            found = fingerprint(text)
            self._whole.setdefault(found.whole, self.num_texts)
            for run in found.runs:
                self._runs.setdefault(run, self.num_texts)
        self.num_texts += 1

    def meets(self, message: Fingerprint, *, by_person: bool) -> tuple[How, int] | None:
        """How a message overlaps and with which record of the file; None where it does not."""
        if by_person and message.whole in self._whole:
            return "message", self._whole[message.whole]
        if message.runs and not self._runs.keys().isdisjoint(message.runs):
            return "run", next(self._runs[run] for run in message.runs if run in self._runs)
        return None


@dataclass(frozen=True, kw_only=True)
class OverlapCounts:
    """How much of a file's texts stands in the comparisons. It holds ids of comparisons and no text."""

    file: str
    texts: int
    """In the file."""
    texts_met: int
    comparisons: int
    by_part: Mapping[str, int]
    """The comparisons by part of the set."""
    prompts: int
    in_prompt: int
    whole_message: int
    """Comparisons of which a person's message is one of the texts, whole."""
    examples: tuple[str, ...]
    """Ids of the first few comparisons."""


@dataclass(frozen=True, kw_only=True)
class DataCheckResults:
    """What stands in comparisons twice, and what stands in other files too."""

    comparisons: int
    prompts: int
    repeated_prompts: int
    openings: int
    repeated_openings: int
    repeated_openings_verbatim: int
    openings_in_several_parts: int
    identical_replies: int
    repeated_votes: int
    """Of one rater on the same replies."""
    contradicted: int
    """Pairs of replies of which some preferred the one and some the other."""
    against: tuple[OverlapCounts, ...]


@dataclass
class Overlap:
    """What was found of one file's texts in the comparisons."""

    file: str
    num_texts: int
    comparisons: dict[str, int] = field(default_factory=dict)
    """By part of the set."""
    in_prompt: int = 0
    as_message: int = 0
    examples: list[str] = field(default_factory=list)
    prompts: set[int] = field(default_factory=set)
    texts_met: set[int] = field(default_factory=set)

    def add(self, comparison: CheckedComparison, prompt: int, how: How, record: int, *, in_prompt: bool) -> None:
        """Count a comparison that overlaps."""
        self.comparisons[comparison.part] = self.comparisons.get(comparison.part, 0) + 1
        self.as_message += how == "message"
        self.texts_met.add(record)
        if in_prompt:
            self.in_prompt += 1
            self.prompts.add(prompt)
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(comparison.id)

    def counts(self) -> OverlapCounts:
        """Counts and the ids of the first few; no texts."""
        return OverlapCounts(
            file=self.file,
            texts=self.num_texts,
            texts_met=len(self.texts_met),
            comparisons=sum(self.comparisons.values()),
            by_part=dict(sorted(self.comparisons.items())),
            prompts=len(self.prompts),
            in_prompt=self.in_prompt,
            whole_message=self.as_message,
            examples=tuple(self.examples),
        )


class DataCheck:
    """Goes over comparisons once and counts what stands in them twice, and what stands in other files too.

    Held are eight bytes per comparison and kind of key (six of them), and hashes of the files it is checked against.
    """

    def __init__(self, against: Sequence[TextIndex] = ()) -> None:
        self._against = [(index, Overlap(index.name, index.num_texts)) for index in against]
        self._openings: dict[str, array[int]] = {}
        self._verbatim, self._prompts = array("q"), array("q")
        self._votes, self._pairs, self._ordered = array("q"), array("q"), array("q")
        self._identical = 0

    def add(self, comparison: CheckedComparison) -> list[tuple[str, How]]:
        """Count a comparison; gives the files whose texts it holds, and how."""
        opening = next((m["content"] for m in comparison.prompt if m["role"] == "user"), "")
        self._openings.setdefault(comparison.part, array("q")).append(hash(normalised(opening)))
        self._verbatim.append(hash(opening))
        prompt, better, worse = (
            hash(tuple((m["role"], m["content"]) for m in messages))
            for messages in (comparison.prompt, comparison.better, comparison.worse)
        )
        self._prompts.append(prompt)
        self._identical += better == worse
        if comparison.decided:
            self._pairs.append(hash((prompt, min(better, worse), max(better, worse))))
            self._ordered.append(hash((prompt, better, worse)))
        sides = zip((better, worse), comparison.contestants, strict=True)
        self._votes.append(hash((comparison.rater, prompt, frozenset(sides))))
        return self._overlaps(comparison, prompt) if self._against else []

    def _overlaps(self, comparison: CheckedComparison, prompt: int) -> list[tuple[str, How]]:
        prompted = [(fingerprint(m["content"]), m["role"] == "user") for m in comparison.prompt]
        replied = [(fingerprint(m["content"]), m["role"] == "user") for m in (*comparison.better, *comparison.worse)]
        found = []
        for index, overlap in self._against:
            for messages, in_prompt in ((prompted, True), (replied, False)):
                met = next(filter(None, (index.meets(m, by_person=by_person) for m, by_person in messages)), None)
                if met is not None:
                    overlap.add(comparison, prompt, *met, in_prompt=in_prompt)
                    found.append((index.name, met[0]))
                    break
        return found

    def results(self) -> DataCheckResults:
        """The counts over everything that was added."""
        # Once per part, so that what stands twice after that stands in several parts.
        by_part = [np.unique(np.asarray(keys)) for keys in self._openings.values()]
        openings = np.concatenate([np.empty(0, np.int64), *by_part])
        every_opening = [np.empty(0, np.int64), *(np.asarray(keys) for keys in self._openings.values())]
        return DataCheckResults(
            comparisons=len(self._prompts),
            prompts=_distinct(self._prompts),
            repeated_prompts=_repeated(self._prompts),
            openings=_distinct(openings),
            repeated_openings=_repeated(np.concatenate(every_opening)),
            repeated_openings_verbatim=_repeated(self._verbatim),
            openings_in_several_parts=_repeated(openings),
            identical_replies=self._identical,
            repeated_votes=len(self._votes) - _distinct(self._votes),
            contradicted=_distinct(self._ordered) - _distinct(self._pairs),
            against=tuple(overlap.counts() for _, overlap in self._against),
        )


def _distinct(keys: Any) -> int:
    return len(np.unique(np.asarray(keys)))


def _repeated(keys: Any) -> int:
    """How many keys stand there more than once."""
    return int((np.unique(np.asarray(keys), return_counts=True)[1] > 1).sum())
