"""The metrics of jobs as TensorBoard's event files, by TensorBoard's own writer, which is an optional extra.

`metrics.jsonl` stays the record; what is written here can be written again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.reports.ppo_progress import read_lines

FILE = "events.out.tfevents.0.metrics"
"""TensorBoard knows event files by `tfevents` in their name; with one fixed name a later export takes the place."""


def export_runs(work: Path, out: Path) -> list[tuple[str, int]]:
    """Write the metrics of every job below `work` into a folder of its own below `out`; names and numbers of lines.

    A run is called after its job and the beginning of its fingerprint, e.g. `train_policy-2f7c61ab90d4`.

    Raises:
        OrchestratorError: TensorBoard is not installed.
    """
    written = []
    for file in sorted(work.glob("*/metrics.jsonl")):
        lines = read_lines(file.parent)
        if not lines:
            continue
        spec = json.loads((file.parent / "spec.json").read_text(encoding="utf-8"))
        name = f"{spec['job']}-{file.parent.name[:12]}"
        (out / name).mkdir(parents=True, exist_ok=True)
        aside = out / name / "new"
        # Times are no part of the metrics, so that two runs of the same job write the same: all lines carry the last.
        _write_events(aside, lines, file.stat().st_mtime)
        aside.replace(out / name / FILE)
        written.append((name, len(lines)))
    return written


def _write_events(file: Path, lines: list[dict[str, Any]], wall_time_s: float) -> None:
    """An event file of the numbers in the lines, by their `step`; what is no number is left out."""
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
        writer.write(Event(wall_time=wall_time_s, file_version="brain.Event:2").SerializeToString())
        for line in lines:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _numbers(line)]
            event = Event(wall_time=wall_time_s, step=int(line["step"]), summary=Summary(value=values))
            writer.write(event.SerializeToString())


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for tag, value in line.items():
        if tag != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            yield tag, float(value)
