"""How a preference model judges pairs of published benchmarks: accuracy with its interval, file by file.

The pairs are written for the job `check_preference_model`, which scores them; `orchestrator evaluate-pm` shows what it
found.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.preference.results import Accuracy, Mistake, OrderedPairs
from models.runtime.results import result_from_json
from orchestrator.data.check import name_of
from orchestrator.data.pair_set import write_pairs
from orchestrator.instance.training_jobs import run_job
from orchestrator.settings import Settings


@dataclass(frozen=True, kw_only=True)
class FileAccuracy(Accuracy):
    """The accuracy on a file's pairs; what was left out of it by reason, and how many pairs the model can't read whole
    or its chat template refuses."""

    left_out: Mapping[str, int]
    too_long: int
    refused_by_template: int = 0


@dataclass(frozen=True, kw_only=True)
class BenchmarkResults:
    """How a preference model judges the pairs of files, by file and all together, and its most confident mistakes."""

    files: Mapping[str, FileAccuracy]
    all: Accuracy
    mistakes: tuple[Mistake, ...]


NO_PAIR = Accuracy(accuracy=None, ci=(0.0, 1.0), n=0)


def evaluate(model: Path, files: list[Path], settings: Settings, question: str | None = None) -> BenchmarkResults:
    """Score every pair of the files; per file its accuracy, what was left out, and the most confident mistakes.

    Args:
        question: What is asked of the pairs of every file, where the records and the file's folder don't say it.

    Raises:
        ImportFileError: a file is in no known format, or holds no pair.
        JobFailed: the folder holds no preference model.
    """
    with tempfile.TemporaryDirectory(prefix="evaluate-pm-") as work:
        pairs = Path(work) / "pairs"
        pairs.mkdir()
        left_out = {name_of(file): write_pairs(file, pairs / "pairs.jsonl", question) for file in files}
        run = run_job(
            "check_preference_model",
            inputs={"preference_model": model, "pairs": pairs},
            settings={},
            seed=0,
            work=Path(work) / "job",
            device=settings.device,
            python=settings.python,
        )
        results = json.loads((run.result / "results.json").read_text(encoding="utf-8"))
    found = result_from_json(OrderedPairs, results, where="the results of check_preference_model")
    by_file = {
        name: FileAccuracy(
            **vars(found.by_source.get(name, NO_PAIR)),
            left_out=dict(sorted(reasons.items())),
            too_long=found.too_long.get(name, 0),
            refused_by_template=(found.refused_by_source or {}).get(name, 0),
        )
        for name, reasons in left_out.items()
    }
    together = Accuracy(
        accuracy=found.accuracy,
        ci=found.ci,
        n=found.n,
        dialogues=found.dialogues,
        design_effect=found.design_effect,
    )
    return BenchmarkResults(files=by_file, all=together, mistakes=found.mistakes)
