"""Runs in MLflow: one experiment, a run each, found again by a tag and then only added to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError
from orchestrator.reports.trackers.measured import MeasuredRun, numbers_of

if TYPE_CHECKING:
    from mlflow.entities import Metric

EXPERIMENT = "orchestrator"
NAME, LINES = "orchestrator.run", "orchestrator.lines"
"""Tags: which run it is, and how many of its lines are there."""
AT_ONCE = 1000
"""Numbers that MLflow takes in one call."""


def export_to_mlflow(runs: Sequence[MeasuredRun], where: str) -> str:
    """Bring each run to what is measured now; notes that people made on it stay."""
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise OrchestratorError(
            f"MLflow is not installed ({error}). Install it with: pip install 'rlhf-orchestrator[mlflow]'"
        ) from error
    try:
        client = MlflowClient(tracking_uri=where)
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found is not None else client.create_experiment(EXPERIMENT)
        for run in runs:
            _bring_up_to_date(client, experiment, run)
    except MlflowException as error:
        raise OrchestratorError(
            f"MLflow at {where} took no runs: {str(error).splitlines()[0]} Expected the address of its server, "
            "http://…, or sqlite:///FILE."
        ) from error
    return f"mlflow ui --backend-store-uri {where}" if not where.startswith("http") else f"open {where}"


def _bring_up_to_date(client: Any, experiment: str, run: MeasuredRun) -> None:
    found = client.search_runs([experiment], f"tags.`{NAME}` = '{run.name}'", max_results=1)
    if found:
        run_id, there = found[0].info.run_id, int(found[0].data.tags.get(LINES, "0"))
    else:
        tags = {NAME: run.name} | {f"orchestrator.{name}": value for name, value in run.facts.items()}
        run_id, there = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id, 0
    numbers = list(_metrics(run, there))
    for start in range(0, len(numbers), AT_ONCE):
        client.log_batch(run_id, metrics=numbers[start : start + AT_ONCE])
    client.set_tag(run_id, LINES, str(len(run.lines)))
    client.set_terminated(run_id)


def _metrics(run: MeasuredRun, there: int) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for line in run.lines[there:]:
        for name, value in numbers_of(line):
            yield Metric(name, value, int(1000 * run.wall_time_s), int(line["step"]))
