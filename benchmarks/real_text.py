"""From text to a policy on real human comparisons, at three sizes: what each size learns.

    python -m benchmarks.real_text [--size small] [--home DIR] [--docs docs] [--page-only]

For a size it pretrains a model from scratch on the text of $ORCHESTRATOR_DATA, imports the helpful and harmless
comparisons, and runs one cycle through the product's own commands: preference model, PPO, evaluation, report. Beside
the cycle's preference model it trains one on the helpful and one on the harmless comparisons alone. The numbers go to
docs/explanation/results/SIZE.json with the hardware they were measured on, and docs/explanation/results.md is written
from all of these files.

`13m` and `42m` (4 and 6 layers, the paper's two smallest) want a GPU; `small` is what two CPU cores train in an hour.
With `--home` an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.hh_weeks import HARMLESS, HELPFUL, data_folder, ended_cycles, orchestrator
from db import tables as t
from db.session import make_engine, session
from orchestrator.config import parse_config
from orchestrator.data.comparison_set import build_comparison_set
from orchestrator.instance.training_jobs import run_job
from orchestrator.instance.up import Instance
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.world.settings import write_toml

ROOT = Path(__file__).resolve().parent.parent
Numbers = dict[str, Any]

TRAIN = (f"{HELPFUL}/train_a.jsonl.gz", f"{HELPFUL}/train_b.jsonl.gz", f"{HARMLESS}/train.jsonl.gz")
DEV = (f"{HELPFUL}/dev.jsonl.gz", f"{HARMLESS}/dev.jsonl.gz")
# No development file: a model that had read the replies to be judged would know them.
TEXTS = ("plain_text/tinyshakespeare.txt", "plain_text/c4_demo.jsonl.gz", "plain_text/wiki_demo.txt.gz", *TRAIN)
PICTURES = ("kl_law", "reliability")
MAX_TRAIN_SCORED = 2000
FULL = {
    "num_prompts": 128,
    "best_of": 64,
    "best_of_prompts": 64,
    "best_of_points": [1, 4, 16, 64],
    "max_reply_tokens": 48,
}


@dataclass(frozen=True)
class Size:
    """A shape, and the learning rates that suit it."""

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    pretrain_rate: float
    preference_model_rate: float
    ppo_rate: float
    iterations: int


SIZES = {
    "small": Size(192, 4, 6, 2048, 4e-3, 5e-4, 1e-4, 30),
    "13m": Size(512, 4, 8, 4096, 1.5e-3, 3e-4, 5e-5, 100),
    "42m": Size(768, 6, 12, 4096, 1e-3, 2e-4, 3e-5, 100),
}


def main() -> int:
    """Run the size that was asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--home", type=Path, help="keep the instance here; default a folder that is removed")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs", help="pictures go to its images/, the rest to explanation/"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page anew from the numbers that are there")
    args = parser.parse_args()
    results = args.docs / "explanation"
    if not args.page_only:
        data = data_folder()
        # Ended from outside, the instance and the command that runs against it must end too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with ExitStack() as stack:
            home = args.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="real-text-")))
            numbers = measure(args.size, home, data, args.docs)
        (results / "results").mkdir(parents=True, exist_ok=True)
        (results / "results" / f"{args.size}.json").write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    found = [json.loads(path.read_text()) for name in SIZES if (path := results / "results" / f"{name}.json").exists()]
    (results / "results.md").write_text(page(found), encoding="utf-8")
    print(page(found))
    return 0


def configuration(name: str, data: Path) -> Numbers:
    """The cycle's configuration for a size."""
    size = SIZES[name]
    return {
        "name": f"real text, {name}",
        "initial_policy": {
            "pretrain": {
                "files": [str(data / file) for file in TEXTS],
                "hidden_size": size.hidden_size,
                "num_layers": size.num_layers,
                "num_heads": size.num_heads,
                "vocab_size": size.vocab_size,
                "max_tokens": 512,
                "batch_tokens": 4096,
                "learning_rate": size.pretrain_rate,
            }
        },
        # The development files are pinned; of the training files hardly anything is held out beside them.
        "comparisons": {"held_out_fraction": 0.001},
        "preference_model": {"max_tokens": 512, "batch_pairs": 32, "learning_rate": size.preference_model_rate},
        # What helpful raters like may be carried over to the few harmless pairs; the page tells it. A model from
        # scratch knows no common sense to be asked about.
        "orientation": {"contradicting_source": "report", "shipped": False},
        "ppo": {
            "iterations": size.iterations,
            "prompts_per_iteration": 64,
            "minibatch_replies": 32,
            "max_reply_tokens": FULL["max_reply_tokens"],
            "learning_rate": size.ppo_rate,
            "kl_coef": 0.02,
            "max_kl_nats": 25.0,
        },
        "evaluation": FULL,
        "serving": {"max_reply_tokens": FULL["max_reply_tokens"]},
    }


def measure(name: str, home: Path, data: Path, docs: Path) -> Numbers:
    """Run the cycle on a home of its own, or find it there, and gather its numbers and pictures."""
    raw = configuration(name, data)
    started_s = time.monotonic()
    with Instance(home / name, workers=False) as instance:
        if not ended_cycles(instance.database_url):
            file = instance.home / "real_text.toml"
            write_toml(raw, file, "python -m benchmarks.real_text")
            orchestrator(instance, "import", *(str(data / path) for path in TRAIN))
            orchestrator(instance, "import", "--split", "held_out", *(str(data / path) for path in DEV))
            orchestrator(instance, "cycle", "run", "--inline", "--config", str(file))
        store = ArtifactStore(f"file://{instance.home / 'artifacts'}", instance.home / "cache")
        with session(instance.database_url) as rows:
            newest = {
                artifact.kind: artifact for artifact in rows.scalars(select(t.Artifact).order_by(t.Artifact.id)).all()
            }
        report = store.fetch(newest["report"].digest)
        (docs / "images").mkdir(exist_ok=True)
        pictures = [picture for picture in PICTURES if (report / f"{picture}.png").exists()]
        for picture in pictures:
            shutil.copyfile(report / f"{picture}.png", docs / "images" / f"results-{name}-{picture}.png")
        numbers: Numbers = json.loads((report / "report.json").read_text())
        one_sided = {
            source: _one_sided(instance, store, newest, raw, source) for source in (HELPFUL, HARMLESS)
        }  # fmt: skip
        return {
            "size": name,
            "hardware": hardware(),
            "seconds": round(time.monotonic() - started_s),
            "shape": {"layers": SIZES[name].num_layers, "hidden": SIZES[name].hidden_size},
            "pretraining": newest["initial_policy"].results,
            "num_train": numbers["preference_model"]["num_train"],
            "held_out": {
                key: numbers["preference_model"]["held_out"][key]
                for key in ("accuracy", "ci", "n", "by_source", "longer_wins", "length_regressed", "calibration")
                if key in numbers["preference_model"]["held_out"]
            },
            "train_accuracy": _accuracy(store, newest, newest["comparison_set"].digest, "train"),
            "one_sided": one_sided,
            "kl_law": numbers.get("kl_law"),
            "evaluation": numbers["evaluation"],
            "initial_evaluation": numbers["initial_evaluation"],
            "best_of_n": numbers["best_of_n"],
            "reasons": numbers["reasons"],
            "pictures": pictures,
        }


def _one_sided(
    instance: Instance, store: ArtifactStore, newest: dict[str, t.Artifact], raw: Numbers, source: str
) -> Numbers:
    """A preference model of one source's comparisons alone, judged on both."""
    work = instance.home / "work" / f"one-sided-{source}"
    comparisons = work / "comparisons"
    if not comparisons.exists():
        aside = work / "comparisons.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        section = parse_config(raw).comparisons.model_copy(update={"sources": [source]})
        engine = make_engine(instance.database_url)
        build_comparison_set(engine, newest["comparison_set"].results["freeze_id"], section, None, aside)
        engine.dispose()
        aside.rename(comparisons)
    run = run_job(
        "train_preference_model",
        inputs={"initial": store.fetch(newest["initial_policy"].digest), "comparisons": comparisons},
        settings=newest["preference_model"].settings["settings"],
        seed=0,
        work=work / "job",
    )
    return _accuracy(store, newest, newest["comparison_set"].digest, "held_out", run.result)


def _accuracy(
    store: ArtifactStore, newest: dict[str, t.Artifact], comparisons: str, split: str, folder: Path | None = None
) -> Numbers:
    """Accuracy by source on a split, of a preference model in a folder or of the cycle's."""
    from models.preference.comparison_set import load_token_pairs
    from models.preference.model import PreferenceModel
    from models.preference.report import held_out_report, score_pairs

    model = PreferenceModel.load(folder or store.fetch(newest["preference_model"].digest))
    pairs = load_token_pairs(store.fetch(comparisons), model.chat, 512)[split].pairs
    by_source = {}
    for source in sorted({pair.source for pair in pairs}):
        mine = sorted((pair for pair in pairs if pair.source == source), key=lambda pair: pair.id)
        report = held_out_report(score_pairs(model, mine[:MAX_TRAIN_SCORED] if split == "train" else mine))
        by_source[source] = {"accuracy": report.accuracy, "ci": list(report.ci), "n": report.n}
    return by_source


def hardware(threads: int = 1) -> str:
    """What a measurement was made on."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    of_a_job = "one thread" if threads == 1 else f"{threads} threads"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {of_a_job} a job, torch {torch.__version__}"


def paper_accuracy(num_parameters: float, num_comparisons: float) -> float:
    """The paper's fit for helpful comparisons, with PM pre-training and 400 billion tokens of language before it.

    13e6 parameters and 44e3 comparisons: 0.72 + 0.007·ln(1.3e-4) + 0.015·ln(0.55) = 0.72 - 0.0626 - 0.0090 = 0.648.

    Source: arXiv:2204.05862, A.3; natural logarithm.
    """
    return 0.72 + 0.007 * math.log(num_parameters / 1e11) + 0.015 * math.log(num_comparisons / 8e4)


def page(found: list[Numbers]) -> str:
    """docs/explanation/results.md."""
    missing = [name for name in SIZES if name not in {numbers["size"] for numbers in found}]
    lines = [
        "# Results on real text",
        "",
        "Written by `python -m benchmarks.real_text --size SIZE`; the numbers are in [results/](results/). Models are",
        "trained from scratch on the text of the data folder alone (no development file), so that they know far less",
        "language than the paper's: its figure for the size stands beside as context, not as a target. Intervals are",
        "95 %, over pairs.",
        "",
    ]
    if missing:
        lines += [f"Not run: {', '.join(missing)} (they want a GPU; none was at hand).", ""]
    for numbers in found:
        pretraining = numbers["pretraining"]
        lines += _item(
            f"{numbers['size']} ({numbers['shape']['layers']} layers, width {numbers['shape']['hidden']}): "
            f"{pretraining['num_parameters'] / 1e6:.1f} M parameters, "
            f"{pretraining['num_tokens'] / 1e6:.2f} M tokens read, held-out loss "
            f"{pretraining['held_out_loss']:.3f} nats per token; {numbers['hardware']}, "
            f"{numbers['seconds'] / 60:.0f} min"
        )
    lines += [
        "",
        "## Preference models",
        "",
        "Held-out accuracy by source; beside it the accuracy on training pairs, that of choosing the longer reply,",
        "that with the length regressed out, and the paper's fit.",
        "",
    ]
    for numbers in found:
        held_out = numbers["held_out"]
        for source, entry in held_out["by_source"].items():
            paper = paper_accuracy(numbers["pretraining"]["num_parameters"], numbers["num_train"])
            beside = {
                "training pairs": _entry(numbers["train_accuracy"].get(source)),
                "longer wins": _entry(held_out["longer_wins"]["by_source"].get(source)),
                "length regressed out": _entry(held_out["length_regressed"]["by_source"].get(source)),
            }
            if source == HELPFUL:
                beside["paper's fit"] = f"{paper:.3f}"
            listed = ", ".join(f"{what} {value}" for what, value in beside.items())
            lines += _item(f"{numbers['size']}, {source}: {_entry(entry)} (n = {entry['n']}); {listed}")
    lines += [
        "",
        "Helpful pairs are four times as many as harmless ones, and what their raters like may be carried over, so",
        "that harmless lies below chance. By default that stops a cycle before PPO; this benchmark sets",
        '`orientation.contradicting_source = "report"`. Trained on one source alone, and judged on both:',
        "",
    ]
    lines += ["| size | trained on | judged on helpful | judged on harmless |", "|---|---|---|---|"]
    for numbers in found:
        rows = {"both": numbers["held_out"]["by_source"], **numbers["one_sided"]}
        for trained, by_source in rows.items():
            judged = f"{_entry(by_source.get(HELPFUL))} | {_entry(by_source.get(HARMLESS))}"
            lines.append(f"| {numbers['size']} | {trained} | {judged} |")
    for numbers in found:
        calibration = numbers["held_out"].get("calibration") or {}
        if calibration:
            slope = calibration.get("slope")
            lines += [
                "",
                f"{numbers['size']}: expected calibration error {calibration['expected_calibration_error']:.3f} "
                f"({calibration['error_by_chance']:.3f} by chance), slope {_number(slope)} "
                "(1 is calibrated, below 1 over-confident).",
            ]
    lines += ["", "## Policies", "", "| size | policy | PM score | KL, nats |", "|---|---|---|---|"]
    for numbers in found:
        rows = {
            "initial": numbers["initial_evaluation"],
            f"best of {(numbers['best_of_n'] or {}).get('best_of')}": numbers["best_of_n"],
            "PPO": numbers["evaluation"],
        }
        for name, row in rows.items():
            if row:
                low, high = row["pm_score_ci"]
                score = f"{row['pm_score']:+.3f} [{low:+.3f}, {high:+.3f}]"
                lines.append(f"| {numbers['size']} | {name} | {score} | {row['kl_nats']:.2f} |")
    for numbers in found:
        law = numbers["kl_law"] or {}
        lines += ["", f"{numbers['size']}, score against √KL: {_law(law)}.", ""]
        lines += [
            f"![{picture}, {numbers['size']}](../images/results-{numbers['size']}-{picture}.png)"
            for picture in numbers["pictures"]
        ]
        lines += ["", *(f"- {reason['reason']}" for reason in numbers["reasons"])]
    return "\n".join(lines) + "\n"


def _item(text: str) -> list[str]:
    """An item of a list, in lines as short as every document's."""
    return textwrap.wrap(
        text, 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _law(law: Numbers) -> str:
    if law.get("slope") is None:
        return f"not identifiable ({law.get('reason', 'no curve')})"
    departure = "a departure was found" if law.get("departure") else "no departure was found"
    return f"slope {law['slope']:.3f} per √nat, R² {law['r_squared']:.3f}, {departure}"


def _entry(entry: Numbers | None) -> str:
    if not entry or entry.get("accuracy") is None:
        return "–"
    low, high = entry["ci"]
    return f"{entry['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
