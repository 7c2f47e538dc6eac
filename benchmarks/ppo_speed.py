"""Our PPO against TRL 1.12.0, the last release with PPO: samples per second at equal work, and peak memory.

    python -m benchmarks.ppo_speed [--rounds 3] [--rows uneven,equal] [--device cuda]

Both sides get the same model, reference and preference model (random weights), the same prompts, reply lengths (fixed
in advance, so that every iteration is the same work), minibatches and number of optimiser steps, one thread. TRL has a
value model of its own; ours is measured with the critic on the policy's trunk and with one of its own. Each side is a
process that runs one iteration when told to; they take turns. CPU seconds, the best iteration after the first.
Memory is the highest resident memory above what the process had before it loaded the models.

The first call makes an environment for TRL in the cache directory (see benchmarks/baseline_venv.py). Exits with 1 where
a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

SETTINGS = {"epochs": 4, "minibatch_replies": 16, "learning_rate": 1e-6, "kl_coef": 0.05}


@dataclass(frozen=True)
class Row:
    """One line of the table: what is compared, and what is expected of it."""

    name: str
    target: float
    prompt_tokens: tuple[int, int]  # lowest and highest; uneven in between
    reply_tokens: tuple[int, int]
    critic: str = "shared"
    vocabulary: int = 1024
    prompts: int = 64
    dtype: str = "float32"
    memory: float | None = 0.5  # highest share of TRL's memory


UNEVEN: dict[str, Any] = {"prompt_tokens": (16, 128), "reply_tokens": (4, 128)}
EQUAL: dict[str, Any] = {"prompt_tokens": (64, 64), "reply_tokens": (64, 64)}
ROWS = {
    "uneven": Row("shared trunk, uneven lengths", 4.0, **UNEVEN),
    "equal": Row("shared trunk, equal lengths", 2.0, **EQUAL),
    "separate": Row("separate value model, uneven lengths", 2.5, **UNEVEN, critic="separate"),
    "vocabulary": Row("vocabulary 32 k, uneven lengths", 2.5, **UNEVEN, vocabulary=32_000, prompts=16),
    "uneven-bf16": Row("shared trunk, uneven lengths", 5.0, **UNEVEN, dtype="bfloat16"),
    "equal-bf16": Row("shared trunk, equal lengths", 3.0, **EQUAL, dtype="bfloat16"),
}


class Worker:
    """One side, as a process that runs an iteration when told to."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def iteration(self) -> dict[str, float]:
        """What one iteration took."""
        return self._ask("go")

    def end(self) -> dict[str, float]:
        """What the process needed."""
        answer = self._ask("end")
        self._process.wait()
        return answer

    def _ask(self, what: str) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = "\n".join(self._log.read_text().splitlines()[-15:])
            raise SystemExit(f"error: a worker died:\n{tail}")
        return json.loads(line)  # type: ignore[no-any-return]


@dataclass
class Side:
    """What was measured of one side."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: float = 0.0


def compare(row: Row, args: argparse.Namespace, folder: Path) -> tuple[Side, Side]:
    """Both sides of a row, their iterations in turn."""
    from benchmarks.baseline_venv import TRL_PPO, baseline_python
    from benchmarks.speed_world import Size, uneven, write_world
    from models.policy.prompts import load_prompts

    size = Size(args.hidden, args.layers, args.heads, args.intermediate, row.vocabulary)
    chat = write_world(folder, size, uneven(row.prompts, *row.prompt_tokens, seed=1))
    found = load_prompts(folder / "prompts", chat, "train", 10_000).prompts
    spec = {
        "folder": str(folder),
        "out": str(folder / "out"),
        "device": args.device,
        "dtype": row.dtype,
        "prompts": [list(prompt.ids) for prompt in found],
        "reply_tokens": uneven(row.prompts, *row.reply_tokens, seed=2),
        "critic": row.critic,
        "settings": SETTINGS,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    trl = [str(baseline_python(TRL_PPO)), str(ROOT / "benchmarks" / "trl_ppo.py")]
    ours = [sys.executable, "-m", "benchmarks.ppo_speed", "--worker"]
    workers = [
        Worker([*command, str(folder / "spec.json")], folder / f"{i}.log") for i, command in enumerate((ours, trl))
    ]
    sides = (Side(), Side())
    for number in range(args.rounds + 1):
        for side, worker in zip(sides, workers, strict=True):
            took = worker.iteration()
            if number:  # the first iteration fills caches
                side.seconds.append(took["wall_s" if args.device == "cuda" else "cpu_s"])
    for side, worker in zip(sides, workers, strict=True):
        side.peak_bytes = worker.end()["peak_bytes"]
    return sides


def main() -> int:
    """Measure and print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS), help="some of " + ", ".join(ROWS))
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    for name, default in (("hidden", 128), ("layers", 4), ("heads", 4), ("intermediate", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--bf16-anyway", action="store_true", help="run bf16 rows also on a CPU without AMX, where they have no target"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.loads(args.worker.read_text()))

    import torch

    from benchmarks.speed_world import has_amx

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = args.rows.split(",")
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    print(
        f"PPO against TRL 1.12.0: hidden {args.hidden}, {args.layers} layers, {SETTINGS['epochs']} epochs, "
        f"minibatches of {SETTINGS['minibatch_replies']}; {args.device}, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':40} {'ours':>9} {'TRL':>9} samples/s  {'ratio':>5} target  {'ours':>5} {'TRL':>5} MB  share target")
    figures, missed = [], 0
    for name in names:
        row = ROWS[name]
        label = f"{row.name} ({'bf16' if row.dtype == 'bfloat16' else 'fp32'})"
        judged = row.dtype != "bfloat16" or args.device != "cpu" or has_amx()
        if not judged and not args.bf16_anyway:
            print(f"{label:46} not run: this CPU has no AMX (--bf16-anyway runs it)")
            continue
        with tempfile.TemporaryDirectory() as folder:
            ours, trl = compare(row, args, Path(folder))
        ratio, share = min(trl.seconds) / min(ours.seconds), ours.peak_bytes / trl.peak_bytes
        short = ratio < row.target or (row.memory is not None and share > row.memory)
        missed += short and judged
        rates = [row.prompts / min(side.seconds) for side in (ours, trl)]
        megabytes = [side.peak_bytes / 1e6 for side in (ours, trl)]
        print(
            f"{label:46} {rates[0]:6.1f} {rates[1]:6.1f}   {ratio:10.2f} {row.target:6.1f} {megabytes[0]:8.0f} "
            f"{megabytes[1]:6.0f}   {share:5.0%} {'' if row.memory is None else f'{row.memory:6.0%}'}"
            f"  {('MISSED' if short else 'met') if judged else 'no target without AMX'}",
            flush=True,
        )
        figures.append(
            {"row": name, "ratio": ratio, "memory_share": share, "ours": vars(ours), "trl": vars(trl)}
            | {"settings": dataclasses.asdict(row)}
        )
    if args.json:
        args.json.write_text(json.dumps({"load": os.getloadavg(), "rows": figures}, indent=2) + "\n")
    return int(missed > 0)


# Our side


def worker(spec: dict[str, Any]) -> int:
    """The PPO job itself, one iteration each time it is told to."""
    import torch

    from benchmarks.speed_world import cpu_seconds
    from models.chat.format import ChatFormat
    from models.policy import training as training_module
    from models.policy.settings import PPOSettings
    from models.runtime.job import Job
    from models.runtime.random_numbers import derive_seed
    from models.sampling.engine import SamplingParams

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**what: float) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    class Paced(Job):
        """Every iteration logs one line: there it reports what it took, and waits for the next one."""

        def log(self, step: int, **numbers: Any) -> None:
            super().log(step, **numbers)
            if spec["device"] == "cuda":
                torch.cuda.synchronize()
            say(cpu_s=cpu_seconds() - self.began[0], wall_s=time.perf_counter() - self.began[1])
            self.wait()

        def wait(self) -> None:
            if sys.stdin.readline() != "go\n":
                gpu = spec["device"] == "cuda"
                say(peak_bytes=torch.cuda.max_memory_allocated() if gpu else memory("VmHWM") - before)
                os._exit(0)
            self.began = (cpu_seconds(), time.perf_counter())

    folder, lengths = Path(spec["folder"]), spec["reply_tokens"]
    inputs = {name: str(folder / name) for name in ("initial", "preference_model", "prompts")}
    out = Path(spec["out"]) / "ours"
    out.mkdir(parents=True)
    job = Paced({"job": "train_policy", "inputs": inputs, "device": spec["device"]}, out)
    job.prepare_process()
    settings = PPOSettings(
        iterations=10_000,
        prompts_per_iteration=len(lengths),
        max_reply_tokens=max(lengths),
        critic=spec["critic"],
        precision=spec["dtype"],
        checkpoint_every=10_000,
        **spec["settings"],
    )
    chat = ChatFormat.load(folder / "initial")
    gc.collect()
    before = memory("VmRSS")
    training = training_module.PolicyTraining(job, settings, chat)
    # Lengths are given, not drawn: no token ends a reply, and each request has a limit of its own.
    training.collector.engine.eos_id = -1
    training._sampling = lambda seed, count: [  # type: ignore[method-assign]
        SamplingParams(lengths[i], seed=derive_seed(seed, i)) for i in range(count)
    ]
    job.wait()
    training.run()
    return 0


def memory(name: str) -> int:
    """VmRSS or VmHWM (the highest VmRSS) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


if __name__ == "__main__":
    sys.exit(main())
