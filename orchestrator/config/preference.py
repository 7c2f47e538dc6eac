"""Sections about comparisons and the preference models that learn from them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from models.preference.settings import ComparisonTraining, RankingSettings
from models.runtime.training_choices import LoraSettings
from orchestrator.config.base import STRICT, PathText, Section, Threads, key


class ComparisonsSection(Section):
    """Which comparisons the preference model learns from."""

    held_out_fraction: float = key(
        0.05,
        "Share of the dialogues that no preference model trains on, by a stable hash of their opening message.",
        unit="share",
        raised="narrower intervals of the accuracy, and fewer comparisons to learn from",
        above=0,
        below=1,
    )
    min_strength: int = key(
        1,
        "Weaker comparisons are left out; those of unknown strength pass.",
        unit="strength, 1 to 4",
        raised="fewer and clearer comparisons",
        at_least=1,
        at_most=4,
    )
    label_kinds: list[Literal["human", "model"]] = key(
        ["human"], "Who chose: people, or models in their place; those of models are left out by default."
    )
    sources: list[str] | None = key(None, "Only comparisons of these sources; all where not given.")
    check_against: list[PathText] = key(
        [],
        "Evaluation files whose texts are looked for among the comparisons, and reported; none is left out.",
    )
    ties: list[Literal["tie", "cant_tell"]] = key(
        [], "Undecided comparisons that enter too; they teach only where preference_model.targets is `soft`."
    )

    def selection(self) -> dict[str, Any]:
        """What decides which comparisons are in the set: all settings but what it is only checked against.

        `ties` only where any enter, so that sets without them keep their bytes from before there was the key.
        """
        return self.model_dump(mode="json", exclude={"check_against"} if self.ties else {"check_against", "ties"})


class SkillSection(Section):
    """Comparisons of an extra skill, mixed into the preference model's training."""

    name: str = key(..., "Its source in the accuracies of the report.", min_length=1, max_length=80)
    file: PathText = key(..., "Its comparisons, in a form that the template reads.")
    template: Literal["as-it-is/1", "summary/1"] = key(
        "as-it-is/1", "How a record becomes a dialogue; `as-it-is/1`: any format that can be imported."
    )
    question: Literal["helpful", "harmless"] = key("helpful", "What its comparisons answer, and are weighed as.")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PMPSection(RankingSettings, Threads):
    """Pre-training of the preference model's trunk on ranked public answers, before the fine-tuning; off by default."""

    files: list[PathText] = key(
        [], "JSONL(.gz) of questions with their answers' votes, or ranked trees; none turns it off."
    )
    pairs: Literal["binary", "ranked"] = key(
        "binary",
        "What a pair A > B becomes: GOOD: A > BAD: A and BAD: B > GOOD: B, which transfers better, or A > B itself.",
    )
    held_out_fraction: float = key(
        0.05,
        "Share of the questions that are held out, by a stable hash.",
        unit="share",
        raised="a narrower interval of the accuracy, and fewer questions to learn from",
        above=0,
        below=1,
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PreferenceModelSection(ComparisonTraining, LoraSettings, Threads):
    """Training of the preference model."""

    skills: list[SkillSection] = key([], "Extra comparisons from files, [[preference_model.skills]].")


class OrientationSection(Section):
    """What the preference model must not order the wrong way round: a hand-made set, and no source as a whole."""

    file: PathText | None = key(
        None,
        "JSONL of prompt/chosen/rejected of your own, judged at 95 %; takes the place of the shipped set.",
    )
    shipped: bool = key(
        True,
        "Without a file, 40 English pairs that come with the program are judged at 99.9 %; off: no check.",
    )
    contradicting_source: Literal["stop", "report"] = key(
        "stop", "A source whose held-out comparisons lie surely below chance: stop, or tell in the report."
    )


class ReferenceSection(Section):
    """The fixed set over which every preference model's offset is measured, so that scores can be shown together."""

    file: PathText | None = key(None, "JSONL of prompt/chosen/rejected; both replies are scored.")
    pairs: int = key(
        128,
        "Without a file: held-out comparisons of the first cycle of this name, by a stable hash.",
        unit="pairs",
        raised="a steadier offset, and more time to score it",
        at_least=1,
    )
