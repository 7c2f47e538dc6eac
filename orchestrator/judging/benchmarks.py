"""How a preference model judges pairs of published benchmarks: accuracy with its interval, file by file.

The pairs are written for the job `check_preference_model`, which scores them; `orchestrator evaluate-pm` shows what it
found.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from db.split import split_key
from orchestrator.data.check import name_of
from orchestrator.data.comparison_set import oriented
from orchestrator.data.formats import detect, make_parser
from orchestrator.data.formats.reading import RecordFile
from orchestrator.data.formats.records import Refused, load_object
from orchestrator.errors import ImportFileError
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


def write_pairs(file: Path, out: Path, question: str | None = None) -> Counter[str]:
    """Append the decided comparisons of a file to pairs.jsonl, the file as their source; counts what was left out.

    Raises:
        ImportFileError: the file is in no known format, or holds no pair.
    """
    left_out: Counter[str] = Counter()
    folder = file.absolute().parent.name.lower()
    default = question or ("harmless" if "harmless" in folder else "helpful")
    parser, num_pairs = None, 0
    with out.open("a", encoding="utf-8") as lines, RecordFile(file) as records:
        for raw in records:
            try:
                record = load_object(raw.text)
                if parser is None:
                    parser = make_parser(detect(record, f"{file}, line {raw.line}"), file)
                items = list(parser(record))
            except Refused as refused:
                items = [refused]
            for number, item in enumerate(items):
                if isinstance(item, Refused):
                    left_out[item.reason] += 1
                elif item.side == "none":
                    left_out["none_" + (item.reason or "tie")] += 1
                else:
                    num_pairs += 1
                    pair = oriented(
                        id=f"{name_of(file)}:{raw.line}" + (f":{number}" if len(items) > 1 else ""),
                        source=name_of(file),
                        question=item.question or default,
                        side=item.side,
                        prompt=list(item.prompt),
                        a=list(item.a.messages()),
                        b=list(item.b.messages()),
                    )
                    # Benchmarks ask many raters about one prompt: those comparisons are not independent.
                    opening = next((message["content"] for message in item.prompt if message["role"] == "user"), None)
                    if opening is not None:
                        pair["split_key"] = split_key(opening)
                    lines.write(json.dumps(pair, ensure_ascii=False) + "\n")
    if num_pairs == 0:
        raise ImportFileError(f"{file} holds no pair of which one side is better; expected comparisons.")
    return left_out
