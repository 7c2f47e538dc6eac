"""How a preference model judges pairs of published benchmarks: accuracy with its interval, file by file.

The pairs are written for the job `check_preference_model`, which scores them; `orchestrator evaluate-pm` shows what it
found.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.data.check import name_of
from orchestrator.data.pair_set import write_pairs
from orchestrator.instance.training_jobs import run_job
from orchestrator.settings import Settings


def evaluate(model: Path, files: list[Path], settings: Settings, question: str | None = None) -> dict[str, Any]:
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
        found = json.loads((run.result / "results.json").read_text(encoding="utf-8"))
    nothing = {"accuracy": None, "ci": [0.0, 1.0], "n": 0, "dialogues": None, "design_effect": 1.0}
    by_file = {
        name: found["by_source"].get(name, nothing)
        | {"left_out": dict(sorted(reasons.items())), "too_long": found["too_long"].get(name, 0)}
        for name, reasons in left_out.items()
    }
    return {
        "files": by_file,
        "all": {key: found[key] for key in nothing},
        "mistakes": found["mistakes"],
    }
