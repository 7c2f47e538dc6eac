"""What jobs measured, handed on to the tools that people look at such numbers with. Read `measured.py` first.

Each adapter takes the same runs and gives the command by which they are seen. Its package is an extra, imported late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.reports.trackers.measured import MeasuredRun
from orchestrator.reports.trackers.mlflow import export_to_mlflow
from orchestrator.reports.trackers.tensorboard import export_to_tensorboard
from orchestrator.reports.trackers.wandb import export_to_wandb

Tracker = Callable[[Sequence[MeasuredRun], str], str]
"""Takes runs, and where to; returns how they are seen.

Raises OrchestratorError where its package is not installed, or the place can't be written to.
"""
TRACKERS: dict[str, Tracker] = {
    "tensorboard": export_to_tensorboard,
    "mlflow": export_to_mlflow,
    "wandb": export_to_wandb,
}
"""By the name of the option of `orchestrator metrics export`."""
