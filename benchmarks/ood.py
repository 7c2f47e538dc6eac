"""How well detectors of far requests tell harmful and other prompts from helpful ones, beside the prompts' length.

    ORCHESTRATOR_DATA=/data python -m benchmarks.ood

A small model (hidden 128, 4 layers) is pretrained from scratch on the text of the data folder, without the `dev`
files of the hh sets. Home is the helpful first turns of those; they are split at random, by opening, into prompts that
fit the detector, that choose layer and threshold, and that judge it. Printed are AUROCs as mean ± standard deviation of
the splits.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.chat.format import ChatFormat, Message
from models.chat.openings import opening
from models.detectors.detector import hidden_states, score_states
from models.detectors.fitting import fit_statistics, split_by_opening, validation_auroc
from models.detectors.scores import auroc
from models.detectors.settings import DetectorKind, OodSettings
from models.model_folders.loading import load_causal_lm
from orchestrator.data.named_files import write_text

ROOT = Path(__file__).resolve().parent.parent
PRETRAINING = (
    "plain_text/tinyshakespeare.txt",
    "plain_text/c4_demo.jsonl.gz",
    "plain_text/wiki_demo.txt.gz",
    "hh_helpful_single_turn/train_a.jsonl.gz",
    "hh_helpful_single_turn/train_b.jsonl.gz",
    "hh_harmless_base/train.jsonl.gz",
)
SHAPE = {"hidden_size": 128, "num_layers": 4}
DETECTORS: tuple[DetectorKind, ...] = ("relative", "mahalanobis", "exposure")
HARMFUL = ("advbench", "strongreject", "harmfulqa")
MAX_TOKENS = 256


def main() -> int:
    """Pretrain or find the model, read its hidden states once, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3, help="random splits, each with its own draw of examples")
    parser.add_argument("--examples", type=int, default=10, help="harmful examples of the exposure detector")
    parser.add_argument("--model", type=Path, help="a prepared policy to read in place of the small one")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ood-benchmark")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    data = Path(os.environ.get("ORCHESTRATOR_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not data.is_dir():
        print(f"error: no data at {data}; set ORCHESTRATOR_DATA", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    folder = args.model or pretrained(data, args.cache)
    groups = prompts(data)
    model, chat = load_causal_lm(folder), ChatFormat.load(folder)
    layers = list(range(1, model.config.num_hidden_layers + 1))
    states: dict[str, dict[int, torch.Tensor]] = {}
    lengths: dict[str, torch.Tensor] = {}
    for name, dialogues in groups.items():
        sequences = [chat.encode(dialogue, reply=True)[-MAX_TOKENS:] for dialogue in dialogues]
        found = hidden_states(model, chat.pad_id, sequences, layers)
        states[name] = dict(zip(layers, found, strict=True))
        lengths[name] = torch.tensor([float(len(ids)) for ids in sequences])
    numbers = measure(groups, states, lengths, layers, args.splits, args.examples)
    print(f"prompts: {', '.join(f'{name} {len(group)}' for name, group in groups.items())}\n")
    print(table(numbers))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    return 0


def pretrained(data: Path, cache: Path) -> Path:
    """The small model, pretrained by the job unless the cache has it already."""
    files = [data / name for name in PRETRAINING]
    spec = {"job": "pretrain", "inputs": {"text": str(cache / "text")}, "settings": SHAPE, "seed": 0, "threads": 1}
    key = json.dumps([spec, [(file.name, file.stat().st_size) for file in files]])
    out = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not (out / "result").is_dir():
        (cache / "text").mkdir(parents=True, exist_ok=True)
        print(write_text(files, cache / "text"), flush=True)
        out.mkdir(exist_ok=True)
        (out / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "models.jobs.pretrain", "--spec", str(out / "spec.json"), "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
    print(f"model: {(out / 'result' / 'results.json').read_text()}", flush=True)
    return out / "result"


def prompts(data: Path) -> dict[str, list[list[Message]]]:
    """First turns and prompts by group, each opening once, and in one group only: the first that has it."""
    asked = {
        "helpful": first_turns(data / "hh_helpful_single_turn" / "dev.jsonl.gz"),
        "harmless": first_turns(data / "hh_harmless_base" / "dev.jsonl.gz"),
        "advbench": column(data / "prompts_harmful" / "advbench_harmful_behaviors.csv", "goal"),
        "strongreject": column(data / "prompts_harmful" / "strongreject_dataset.csv", "forbidden_prompt"),
        "harmfulqa": harmful_questions(data / "prompts_harmful" / "harmfulqa.json"),
        "self-instruct": instructions(data / "prompts_general" / "self_instruct_user_oriented.jsonl"),
        "arena-hard": arena(data / "prompts_general" / "arena_hard_questions.jsonl"),
    }
    seen: set[str] = set()
    groups: dict[str, list[list[Message]]] = {}
    for name, texts in asked.items():
        groups[name] = []
        for text in texts:
            dialogue: list[Message] = [{"role": "user", "content": text.strip()}]
            if opening(dialogue) not in seen:
                seen.add(opening(dialogue))
                groups[name].append(dialogue)
    return groups


def first_turns(file: Path) -> Iterator[str]:
    """What the human of each dialogue said first."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            said = json.loads(line)["chosen"].split("\n\nHuman:", 1)[1]
            yield said.split("\n\nAssistant:", 1)[0]


def column(file: Path, name: str) -> Iterator[str]:
    """One column of a CSV file."""
    with file.open(encoding="utf-8", newline="") as lines:
        yield from (row[name] for row in csv.DictReader(lines))


def harmful_questions(file: Path) -> Iterator[str]:
    """Every question of the nested lists."""
    for subtopics in json.loads(file.read_text(encoding="utf-8")).values():
        for questions in subtopics.values():
            yield from questions


def instructions(file: Path) -> Iterator[str]:
    """Instruction and input of each task."""
    with file.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            yield f"{record['instruction']}\n{record['instances'][0]['input']}"


def arena(file: Path) -> Iterator[str]:
    """The first turn of each question."""
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["turns"][0]["content"] for line in lines)


def measure(
    groups: dict[str, list[list[Message]]],
    states: dict[str, dict[int, torch.Tensor]],
    lengths: dict[str, torch.Tensor],
    layers: list[int],
    num_splits: int,
    num_examples: int,
) -> list[dict[str, Any]]:
    """One row per detector, source of examples, split and group judged."""
    rows: list[dict[str, Any]] = []
    for split in range(num_splits):
        fit, validation, test = (torch.tensor(part) for part in split_by_opening(groups["helpful"], split))
        for source in ("harmful", "harmless"):
            sources = HARMFUL if source == "harmful" else ("harmless",)
            pool = [(name, row) for name in sources for row in range(len(groups[name]))]
            drawn = random.Random(f"{split}/{source}").sample(pool, num_examples)
            for detector in DETECTORS:
                settings = OodSettings(detector=detector)
                best = choose(settings, states, fit, validation, drawn, layers)
                last = layers[-1]
                for how, layer in (("chosen", best), ("last", last)):
                    few = torch.stack([states[name][layer][row] for name, row in drawn])
                    kept = fit_statistics(settings, states["helpful"][layer][fit], few)
                    home = score_states(detector, kept, states["helpful"][layer][test])
                    limit = score_states(detector, kept, states["helpful"][layer][validation])
                    threshold = float(torch.quantile(limit, settings.quantile, interpolation="higher"))
                    for name, rows_left in judged(groups, drawn).items():
                        scores = torch.cat(
                            [score_states(detector, kept, states[one][layer][left]) for one, left in rows_left]
                        )
                        size = torch.cat([lengths[one][left] for one, left in rows_left])
                        rows.append(
                            {
                                "detector": detector,
                                "examples": source,
                                "split": split,
                                "layer_by": how,
                                "layer": layer,
                                "group": name,
                                "n": len(scores),
                                "auroc": auroc(home, scores),
                                "length_auroc": auroc(lengths["helpful"][test], size),
                                "beyond": float((scores > threshold).double().mean()),
                                "home_beyond": float((home > threshold).double().mean()),
                            }
                        )
    return rows


def choose(
    settings: OodSettings,
    states: dict[str, dict[int, torch.Tensor]],
    fit: torch.Tensor,
    validation: torch.Tensor,
    drawn: list[tuple[str, int]],
    layers: list[int],
) -> int:
    """The layer that tells the examples best from home."""

    def told(layer: int) -> float:
        few = torch.stack([states[name][layer][row] for name, row in drawn])
        home = states["helpful"][layer]
        return validation_auroc(settings, home[fit], home[validation], few) or 0.0

    return max(layers, key=lambda layer: (told(layer), layer))


def judged(
    groups: dict[str, list[list[Message]]], drawn: list[tuple[str, int]]
) -> dict[str, list[tuple[str, list[int]]]]:
    """The rows of each group to judge, without the examples; `all harmful` is the three sets together."""
    left = {
        name: [row for row in range(len(group)) if (name, row) not in set(drawn)]
        for name, group in groups.items()
        if name != "helpful"
    }
    together = {"all harmful": [(name, left[name]) for name in HARMFUL]}
    return together | {name: [(name, rows)] for name, rows in left.items()}


def table(numbers: list[dict[str, Any]]) -> str:
    """Markdown: AUROC by group and detector, false alarms beside it, one table per source of examples."""
    lines = []
    for source in ("harmful", "harmless"):
        for how in ("chosen", "last"):
            rows = [row for row in numbers if row["examples"] == source and row["layer_by"] == how]
            layers = {
                detector: sorted({row["layer"] for row in rows if row["detector"] == detector})
                for detector in DETECTORS
            }
            lines += [f"examples: {source}; layer {how}: {layers}", ""]
            lines += [
                f"| against | n | {' | '.join(DETECTORS)} | length | beyond the threshold |",
                "|---|---|---|---|---|---|---|",
            ]
            for group in dict.fromkeys(str(row["group"]) for row in rows):
                of = [row for row in rows if row["group"] == group]
                cells = [spread([row["auroc"] for row in of if row["detector"] == one]) for one in DETECTORS]
                beyond = " / ".join(
                    f"{statistics.mean(row['beyond'] for row in of if row['detector'] == one):.1%}" for one in DETECTORS
                )
                length = spread([row["length_auroc"] for row in of if row["detector"] == DETECTORS[0]])
                lines.append(f"| {group} | {of[0]['n']} | {' | '.join(cells)} | {length} | {beyond} |")
            own = " / ".join(
                f"{statistics.mean(row['home_beyond'] for row in rows if row['detector'] == one):.1%}"
                for one in DETECTORS
            )
            lines += [f"| helpful, unseen | | | | | | {own} |", ""]
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of the splits."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    sys.exit(main())
