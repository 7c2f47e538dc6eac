"""Runs PPO's job in this process on the tiny world of marked_words.py. Read by conftest.py."""

import json
from pathlib import Path
from typing import Any

from models.jobs import train_policy
from models.runtime.job import Job

QUICK = {"learning_rate": 3e-3, "prompts_per_iteration": 16, "minibatch_replies": 8, "max_reply_tokens": 8}


def ppo_job(out: Path, inputs: dict[str, Path], settings: dict[str, Any], seed: int = 0, device: str = "cpu") -> Job:
    """The job as a stage would start it, not yet run."""
    spec = {
        "job": "train_policy",
        "inputs": {name: str(path) for name, path in inputs.items()},
        "settings": QUICK | settings,
        "seed": seed,
        "device": device,
    }
    out.mkdir(exist_ok=True)
    (out / "spec.json").write_text(json.dumps(spec))
    job = Job(spec, out)
    job.prepare_process()
    return job


def run_ppo(out: Path, inputs: dict[str, Path], settings: dict[str, Any], seed: int = 0, device: str = "cpu") -> Path:
    """Train, and give back the job's directory."""
    train_policy.run(ppo_job(out, inputs, settings, seed, device))
    return out


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "result" / "results.json").read_text())


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


LARGER = {"prompts_per_iteration": 64, "minibatch_replies": 32}
