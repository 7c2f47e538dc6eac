"""Job: does a preference model order a small hand-made set of pairs rightly? Run before any PPO starts.

Inputs: `preference_model` and `pairs` (a folder with pairs.jsonl, lines as in a comparison set). It guards against
the costliest mistake of the loop: a sign or a label turned round, which PPO would follow faithfully.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.comparison_data import ComparisonSetError, TokenPair, stream_lines, token_pair
from models.jobs.runtime import Job, JobError, main, settings_from
from models.preference import PreferenceModel, PreferenceModelError
from models.preference_loss import count_correct
from models.preference_report import ScoredPair, accuracy_entry, score_pairs

NAME = "check_preference_model"


@dataclass(frozen=True)
class CheckSettings:
    """The check has nothing to choose; what accuracy suffices is the gate's decision."""


def run(job: Job) -> None:
    """Score the pairs and publish accuracy, interval, the ids of wrong pairs, and every score.

    Raises:
        JobError: no pairs, a line of the wrong shape, or a folder that holds no preference model.
    """
    settings_from(CheckSettings, job.settings)
    try:
        model = PreferenceModel.load(job.input("preference_model"), job.device)
        pairs = read_pairs(job.input("pairs"), model)
    except (PreferenceModelError, ComparisonSetError) as error:
        raise JobError(str(error)) from error
    scored = score_pairs(model, pairs)

    def write(directory: Path) -> None:
        with (directory / "scores.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair.as_json()) + "\n" for pair in scored)

    job.publish(write, orientation_results(scored))


def read_pairs(directory: Path, model: PreferenceModel) -> list[TokenPair]:
    """The pairs of pairs.jsonl as ids.

    Raises:
        ComparisonSetError: the file is missing or empty, or a line has the wrong shape.
    """
    path = directory / "pairs.jsonl"
    if not path.is_file():
        raise ComparisonSetError(f"{directory} has no pairs.jsonl; expected the orientation pairs.")
    pairs = [token_pair(record, model.chat) for record in stream_lines(path)]
    if not pairs:
        raise ComparisonSetError(f"{path} has 0 pairs; the orientation check needs at least one.")
    return pairs


def orientation_results(scored: list[ScoredPair]) -> dict[str, Any]:
    """Accuracy with its Wilson interval, overall and per question, and the ids of the pairs ordered wrongly.

    A tie counts half in the accuracy and is listed as wrong.
    """
    questions = sorted({pair.question for pair in scored})
    by_question = {
        question: accuracy_entry(
            count_correct(pair.gap for pair in scored if pair.question == question),
            sum(pair.question == question for pair in scored),
        )
        for question in questions
    }
    return {
        **accuracy_entry(count_correct(pair.gap for pair in scored), len(scored)),
        "by_question": by_question,
        "wrong": [pair.id for pair in scored if not pair.gap > 0],
    }


if __name__ == "__main__":
    main(NAME, run)
