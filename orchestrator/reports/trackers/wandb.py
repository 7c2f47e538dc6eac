"""Runs as Weights & Biases keeps them offline; sending them is `wandb sync`, by whoever has its key."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.reports.trackers.measured import MeasuredRun, numbers_of

PROJECT = "orchestrator"


def export_to_wandb(runs: Sequence[MeasuredRun], where: str) -> str:
    """Write each run into a folder of its own; one of an earlier export is replaced, and synced again by its id."""
    try:
        import wandb
    except ImportError as error:
        raise OrchestratorError(
            f"Weights & Biases is not installed ({error}). Install it with: pip install 'rlhf-orchestrator[wandb]'"
        ) from error
    out = Path(where)
    out.mkdir(parents=True, exist_ok=True)
    for run in runs:
        for earlier in out.glob(f"wandb/offline-run-*-{run.name}"):
            shutil.rmtree(earlier)
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True)
        written = wandb.init(
            mode="offline", dir=str(out), project=PROJECT, name=run.name, id=run.name, config=run.facts, settings=quiet
        )
        for line in run.lines:
            written.log(dict(numbers_of(line)), step=int(line["step"]))
        written.finish()
    # `finish` only asks the process that writes to close its files; they are whole once it has ended.
    wandb.teardown()
    return f"wandb sync {out}/wandb/offline-run-*"
