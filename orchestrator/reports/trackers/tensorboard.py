"""Runs as TensorBoard's event files, by TensorBoard's own writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.reports.trackers.measured import MeasuredRun, numbers_of

FILE = "events.out.tfevents.0.metrics"
"""TensorBoard knows event files by `tfevents` in their name; with one fixed name a later export takes the place."""


def export_to_tensorboard(runs: Sequence[MeasuredRun], where: str) -> str:
    """Write each run into a folder of its own; one of an earlier export is replaced."""
    out = Path(where)
    for run in runs:
        (out / run.name).mkdir(parents=True, exist_ok=True)
        aside = out / run.name / "new"
        _write_events(aside, run)
        aside.replace(out / run.name / FILE)
    return f"tensorboard --logdir {out}"


def _write_events(file: Path, run: MeasuredRun) -> None:
    """An event file of the numbers in the lines, by their `step`."""
    # Imported here: an extra, which takes most of a second to import.
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise OrchestratorError(
            f"TensorBoard is not installed ({error}), which writes its files. "
            "Install it with: pip install 'rlhf-orchestrator[tensorboard]'"
        ) from error

    with file.open("wb") as opened:
        writer = RecordWriter(opened)
        writer.write(Event(wall_time=run.wall_time_s, file_version="brain.Event:2").SerializeToString())
        for line in run.lines:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers_of(line)]
            event = Event(wall_time=run.wall_time_s, step=int(line["step"]), summary=Summary(value=values))
            writer.write(event.SerializeToString())
