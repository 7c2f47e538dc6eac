"""Job: does a preference model order pairs rightly that it was not trained on? Run before any PPO starts.

Inputs: `preference_model`, and `pairs` (a folder with pairs.jsonl, lines as in a comparison set) or `comparisons` (a
comparison set, of which the setting `shards` names those to score). It guards against the costliest mistake of the
loop: a sign or a label turned round, which PPO would follow faithfully.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.chat.refusals import Refusals
from models.preference.comparison_set import (
    ComparisonRecord,
    ComparisonSetError,
    pair_or_refusal,
    read_manifest,
    stream_lines,
    stream_records,
)
from models.preference.curves import confident_mistakes
from models.preference.model import PreferenceModel, PreferenceModelError
from models.preference.pairs import TokenPair
from models.preference.report import ScoredPair, grouped, model_accuracy, score_pairs
from models.preference.results import OrderedPairs
from models.runtime.job import Job, JobError, main
from models.runtime.results import result_to_json
from models.runtime.settings import setting, settings_from

NAME = "check_preference_model"


@dataclass(frozen=True)
class CheckSettings:
    """Of a comparison set, which pairs are scored; what accuracy suffices is the gate's decision."""

    shards: tuple[str, ...] = setting((), "Shards of the comparison set to score, as its manifest names them.")
    most_pairs: int = setting(
        4000,
        "Pairs to score at most; of more, those whose ids have the smallest hashes.",
        unit="pairs",
        raised="a narrower interval, and a longer check",
        at_least=1,
    )


def run(job: Job) -> None:
    """Score the pairs and publish accuracy, interval, the ids of wrong pairs, and every score.

    Pairs that are longer than the model can read are left out and counted by source, those that the chat template
    refuses are counted too. Where a week's comparisons leave
    none, nothing is known of them, and the accuracy is None.

    Raises:
        JobError: no orientation pair, or none that fits; a line of the wrong shape, or a folder that holds no
            preference model.
    """
    settings = settings_from(CheckSettings, job.settings)
    refusals = Refusals()
    by_source: Counter[str] = Counter()
    try:
        model = PreferenceModel.load(job.input("preference_model"), job.device)
        if "comparisons" in job.inputs:
            pairs = pairs_of_shards(job.input("comparisons"), settings, model, refusals, by_source)
        else:
            pairs = read_pairs(job.input("pairs"), model, refusals, by_source)
    except (PreferenceModelError, ComparisonSetError) as error:
        raise JobError(str(error)) from error
    fit = [pair for pair in pairs if max(pair.better_tokens, pair.worse_tokens) <= model.max_tokens]
    too_long = Counter(pair.source for pair in pairs) - Counter(pair.source for pair in fit)
    if not fit and "pairs" in job.inputs:
        raise JobError(
            f"None of the pairs can be read: {len(pairs)} are longer than the {model.max_tokens} tokens that the "
            f"preference model was trained on{refusals}. Give others, in orientation.file for one."
        )
    scored = score_pairs(model, fit) if fit else []
    ordered = ordered_pairs(scored, dict(sorted(too_long.items())), refusals, by_source)

    def write(directory: Path) -> None:
        with (directory / "scores.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair.as_json()) + "\n" for pair in scored)

    job.publish(write, result_to_json(ordered))


def read_pairs(directory: Path, model: PreferenceModel, refusals: Refusals, by_source: Counter[str]) -> list[TokenPair]:
    """The pairs of pairs.jsonl as ids; what the chat template refuses is counted.

    Raises:
        ComparisonSetError: the file is missing or empty, or a line has the wrong shape.
    """
    path = directory / "pairs.jsonl"
    if not path.is_file():
        raise ComparisonSetError(f"{directory} has no pairs.jsonl; expected the orientation pairs.")
    pairs = _read(stream_lines(path), model, refusals, by_source)
    if not pairs and not refusals.count:
        raise ComparisonSetError(f"{path} has 0 pairs; the orientation check needs at least one.")
    return pairs


def _read(
    records: Iterable[ComparisonRecord], model: PreferenceModel, refusals: Refusals, by_source: Counter[str]
) -> list[TokenPair]:
    """The pairs of the records; what the chat template refuses is counted, also by source."""
    pairs = []
    for record in records:
        pair = pair_or_refusal(record, model.chat, refusals)
        if pair is None:
            by_source[record["source"]] += 1
        else:
            pairs.append(pair)
    return pairs


def pairs_of_shards(
    directory: Path, settings: CheckSettings, model: PreferenceModel, refusals: Refusals, by_source: Counter[str]
) -> list[TokenPair]:
    """The pairs of the named shards of a comparison set as ids, in the order of the set.

    Ties are left out; what the chat template refuses is counted.

    Raises:
        ComparisonSetError: a shard is damaged or not in the set.
    """
    manifest = read_manifest(directory)
    named = [shard for shard in manifest["shards"] if shard["file"] in settings.shards]
    if len(named) < len(settings.shards):
        raise ComparisonSetError(f"{directory} has {len(named)} of the shards {', '.join(settings.shards)}.")
    records = [record for record in stream_records(directory, manifest | {"shards": named}) if not record.get("tie")]
    chosen = set(sorted(_draw(record["id"]) for record in records)[: settings.most_pairs])
    return _read((record for record in records if _draw(record["id"]) in chosen), model, refusals, by_source)


def _draw(id: str) -> str:
    """A number of the id's that orders comparisons at random, alike in every run."""
    return hashlib.sha256(id.encode()).hexdigest()


def ordered_pairs(
    scored: list[ScoredPair], too_long: dict[str, int], refusals: Refusals, refused_by_source: Counter[str]
) -> OrderedPairs:
    """Accuracy with its Wilson interval, overall, per question and per source, and the ids of pairs ordered wrongly.

    A tie counts half in the accuracy and is listed as wrong. `mistakes` are the most confident ones with their scores.
    """
    return OrderedPairs(
        **vars(model_accuracy(scored)),
        by_question=grouped(scored, lambda pair: pair.question, model_accuracy),
        by_source=grouped(scored, lambda pair: pair.source, model_accuracy),
        wrong=tuple(pair.id for pair in scored if not pair.gap > 0),
        mistakes=confident_mistakes(scored),
        too_long=too_long,
        refused=refusals.found(),
        refused_by_source=dict(sorted(refused_by_source.items())) or None,
    )


if __name__ == "__main__":
    main(NAME, run)
