"""Event files for TensorBoard, read back by TensorBoard."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator import cli
from orchestrator.reports.trackers.tensorboard import FILE


@pytest.fixture
def run(home: Path) -> Path:
    """The folder of a job at work: its last line is half written."""
    folder = home / "work" / ("ab" * 32)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"job": "train_policy"}))
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "kl": 0.5, "n": 2, "stopped": true, "reason": "none", "nothing": null}\n'
        '{"step": 300, "kl": 0.25}\n{"step": 301, "k'
    )
    return folder


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard finds in a folder: steps and values by tag."""
    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def export(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["metrics", "export", "--tensorboard", str(out)]) == 0
    return capsys.readouterr().out


def test_tensorboard_finds_every_number_at_its_step(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "events"
    assert export(out, capsys) == f"train_policy-abababababab: 2 steps\ntensorboard --logdir {out}\n"
    found = scalars(tmp_path / "events" / "train_policy-abababababab")
    assert found == {"kl": [(1, 0.5), (300, 0.25)], "n": [(1, 2.0)]}


def test_a_later_export_takes_the_place_of_the_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "events"
    export(out, capsys)
    (run / "metrics.jsonl").write_text('{"step": 1, "kl": 1}\n')
    export(out, capsys)
    assert [file.name for file in (out / "train_policy-abababababab").iterdir()] == [FILE]
    assert scalars(out / "train_policy-abababababab") == {"kl": [(1, 1.0)]}


def test_without_a_job_it_says_where_it_looked(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["metrics", "export", "--tensorboard", str(tmp_path / "events")]) == 2
    assert f"No job has told metrics (DATABASE_URL is not set), and below {home / 'work'}" in capsys.readouterr().err


def test_without_tensorboard_it_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert cli.main(["metrics", "export", "--tensorboard", str(tmp_path / "events")]) == 2
    assert "pip install 'rlhf-orchestrator[tensorboard]'" in capsys.readouterr().err
