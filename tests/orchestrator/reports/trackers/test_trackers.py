"""Metrics handed on: the same runs to each tool, read back with the tool's own code; none of it needs a network."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from db import tables as t
from db.session import make_engine
from orchestrator import cli
from orchestrator.reports.trackers import TRACKERS
from orchestrator.reports.trackers.measured import MeasuredRun, measured_runs, numbers_of
from orchestrator.reports.trackers.mlflow import EXPERIMENT, NAME
from orchestrator.settings import Settings
from tests.db.rows import add_cycle

LINES = [{"step": 1, "kl": 0.5, "n": 2, "stopped": True, "reason": "none", "nothing": None}, {"step": 300, "kl": 0.25}]
RUN = MeasuredRun("train_policy-abababababab", LINES, 1_000.0, {"cycle": "3"})


def test_only_numbers_are_handed_on() -> None:
    assert [dict(numbers_of(line)) for line in LINES] == [{"kl": 0.5, "n": 2.0}, {"kl": 0.25}]
    assert dict(numbers_of({"step": 1, "kl": float("nan")})) == {}


def test_mlflow_has_every_number_at_its_step_and_later_ones_are_added(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    how = TRACKERS["mlflow"]([MeasuredRun(RUN.name, LINES[:1], RUN.wall_time_s, RUN.facts)], uri)
    assert how == f"mlflow ui --backend-store-uri {uri}"
    TRACKERS["mlflow"]([RUN], uri)
    client = MlflowClient(tracking_uri=uri)
    [found] = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert {name: found.data.tags[name] for name in (NAME, "orchestrator.cycle")} == {
        NAME: RUN.name,
        "orchestrator.cycle": "3",
    }
    history = client.get_metric_history(found.info.run_id, "kl")
    assert [(point.step, point.value, point.timestamp) for point in history] == [
        (1, 0.5, 1_000_000),
        (300, 0.25, 1_000_000),
    ]
    assert sorted(found.data.metrics) == ["kl", "n"]


def test_mlflow_says_which_address_it_can_t_use(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "work" / "abc"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "kl": 1}\n')
    assert cli.main(["metrics", "export", "--mlflow", "gopher://host"]) == 2
    said = capsys.readouterr().err
    assert "MLflow at gopher://host took no runs" in said
    assert "sqlite:///FILE" in said


def records(file: Path) -> Iterator[bytes]:
    """The records of a log of W&B: after seven bytes of its own, each with a sum, its length and its kind (LevelDB).

    One block, 32 KiB, holds all that is written here, so that no record is split.
    """
    data = file.read_bytes()
    assert len(data) < 2**15
    place = 7
    while place < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1  # whole
        yield data[place + 7 : place + 7 + length]
        place += 7 + length


def test_weights_and_biases_keeps_the_run_offline_and_once(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(2):
        assert TRACKERS["wandb"]([RUN], str(tmp_path)) == f"wandb sync {tmp_path}/wandb/offline-run-*"
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = []
    for data in records(file):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append({key: items[key] for key in ("_step", "kl", "n") if key in items})
    assert found == [{"_step": 1, "kl": 0.5, "n": 2.0}, {"_step": 300, "kl": 0.25}]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_without_the_package_it_says_what_to_install(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "work" / "abc"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "kl": 1}\n')
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["metrics", "export", f"--{name}", str(tmp_path / "out")]) == 2
    assert f"pip install 'rlhf-orchestrator[{name}]'" in capsys.readouterr().err


def test_runs_of_every_machine_are_there_and_files_add_what_rows_do_not_have(
    database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    engine = make_engine(database_url)
    fingerprint = "ab" * 32
    with Session(engine) as session:
        cycle = add_cycle(session, name="weekly")
        number = cycle.number
        for lines in (1, 2):  # an attempt that was killed, and the one that went on
            stage = t.Stage(cycle_id=cycle.id, name="train_policy", fingerprint=fingerprint)
            session.add(stage)
            session.flush()
            told = datetime(2026, 1, lines, tzinfo=UTC)
            for place in range(lines):
                numbers = {"step": place + 1, "kl": 0.5}
                session.add(t.StageMetrics(stage_id=stage.id, line=place, numbers=numbers, created_at=told))
        session.commit()
    engine.dispose()
    for folder, job in ((fingerprint, "train_policy"), ("cd" * 32, "evaluate")):
        (home / "work" / folder).mkdir(parents=True)
        (home / "work" / folder / "spec.json").write_text(json.dumps({"job": job}))
        (home / "work" / folder / "metrics.jsonl").write_text('{"step": 7, "kl": 1}\n')
    by_hand, cycles = measured_runs(Settings.from_env())
    assert (by_hand.name, by_hand.lines) == ("evaluate-cdcdcdcdcdcd", [{"step": 7, "kl": 1}])
    assert cycles == MeasuredRun(
        "train_policy-abababababab",
        [{"step": 1, "kl": 0.5}, {"step": 2, "kl": 0.5}],
        datetime(2026, 1, 2, tzinfo=UTC).timestamp(),
        {"cycle": str(number), "configuration": "weekly", "fingerprint": fingerprint},
    )
