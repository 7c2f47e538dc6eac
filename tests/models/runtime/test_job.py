"""The job runtime: spec and settings, metrics, exact resume, atomic publication, one-line errors."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

from models.runtime.job import Job, JobError
from models.runtime.settings import settings_from

FAULTS = """
import resource, torch
from models.runtime.job import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        tensors = [torch.ones(1 << 18) for _ in range(32)]  # 32 MiB, all free after it
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
assert keep_freed_memory()
faults()
print(given_back, faults())
"""


@dataclass
class Settings:
    learning_rate: float = 0.1
    epochs: int = 1
    whiten: bool = True
    name: str | None = None
    split: Literal["train", "held_out"] = "train"
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs}; expected 0 or more")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job({"job": "example", "settings": {}, "seed": 3}, tmp_path)


def lines(job: Job) -> list[dict[str, object]]:
    return [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    # Ten times 8,192 pages of 4 KiB; what glibc does not give back by itself depends on its version.
    assert given_back > 8192
    assert kept < 100


def test_settings_take_an_int_for_a_float_and_keep_defaults() -> None:
    settings = settings_from(Settings, {"learning_rate": 1, "name": None, "sizes": [1, 2]})
    assert settings == Settings(learning_rate=1.0, sizes=[1, 2])
    assert isinstance(settings.learning_rate, float)


def test_unknown_setting_names_the_key_and_the_known_ones() -> None:
    with pytest.raises(JobError, match=r"'lr' in Settings\. Known: epochs, learning_rate, name"):
        settings_from(Settings, {"lr": 1.0})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"epochs": 1.5}, r"Settings\.epochs is 1\.5; expected int"),
        ({"epochs": True}, r"Settings\.epochs is True; expected int"),
        ({"whiten": 1}, r"Settings\.whiten is 1; expected bool"),
        ({"learning_rate": "0.1"}, r"Settings\.learning_rate is '0\.1'; expected float"),
        ({"split": "test"}, r"Settings\.split is 'test'; expected Literal\['train', 'held_out'\]"),
        ({"sizes": [1, "2"]}, r"Settings\.sizes\[1\] is '2'; expected int"),
        ({"name": 4}, r"Settings\.name is 4; expected str \| None"),
        ({"epochs": -1}, r"epochs is -1; expected 0 or more"),
    ],
)
def test_setting_of_the_wrong_kind_is_a_mistake(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(JobError, match=message):
        settings_from(Settings, mapping)


def test_missing_input_is_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no input 'source'"):
        job.input("source")
    with pytest.raises(JobError, match=r"Input 'source' is /nowhere"):
        Job({"inputs": {"source": "/nowhere"}}, tmp_path)


def test_metrics_are_cut_back_to_the_checkpoint(job: Job) -> None:
    for step in (1, 2):
        job.log(step, loss=1.0 / step)
    job.save_checkpoint(2, {"weights": torch.ones(2)})
    job.log(3, loss=float("nan"))
    # Killed while writing: half a line without a newline.
    with (job.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    again = Job(job.spec, job.out)
    loaded = again.load_checkpoint()
    assert loaded is not None
    assert loaded[0] == 2
    assert loaded[1]["weights"].tolist() == [1.0, 1.0]
    assert lines(again) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_metrics_of_a_run_without_checkpoint_start_over(job: Job) -> None:
    job.log(1, loss=float("inf"))
    assert lines(job) == [{"step": 1, "loss": None}]
    assert job.load_checkpoint() is None
    assert lines(job) == []


def test_random_numbers_go_on_where_the_checkpoint_was_taken(job: Job) -> None:
    torch.manual_seed(5)
    job.save_checkpoint(1, {})
    expected = torch.rand(3)
    torch.manual_seed(6)
    job.load_checkpoint()
    assert torch.equal(torch.rand(3), expected)


def test_checkpoint_of_other_settings_is_not_used(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.save_checkpoint(4, {})
    assert Job(job.spec | {"settings": {"epochs": 2}}, job.out).load_checkpoint() is None
    assert "other settings; starting over" in capsys.readouterr().err
    # The same inputs under other paths (another cache directory) are the same job.
    moved = Job(job.spec, job.out).load_checkpoint()
    assert moved is not None


def test_result_appears_complete_and_takes_the_checkpoint_away(job: Job) -> None:
    job.save_checkpoint(1, {})
    (job.out / "result.tmp").mkdir()
    (job.out / "result.tmp" / "left behind by a killed run").touch()

    def write(folder: Path) -> None:
        assert not job.done
        (folder / "model.txt").write_text("weights")

    job.facts["tokens_per_s"] = 12
    job.publish(write, {"optimiser_steps": 3, "loss": float("nan"), "held_out": {"ci": (0.1, 0.2)}})
    assert sorted(path.name for path in (job.out / "result").iterdir()) == ["model.txt", "results.json"]
    results = json.loads((job.out / "result" / "results.json").read_text())
    assert results == {"held_out": {"ci": [0.1, 0.2]}, "loss": None, "optimiser_steps": 3}
    facts = json.loads((job.out / "run.json").read_text())
    assert facts["tokens_per_s"] == 12
    assert facts["threads"] == 1
    assert not (job.out / "checkpoint").exists()
    assert not (job.out / "result.tmp").exists()


def test_no_optimiser_step_is_a_failure(job: Job) -> None:
    with pytest.raises(JobError, match="No optimiser step was taken"):
        job.publish(lambda folder: None, {"optimiser_steps": 0})
    assert not job.done


def test_progress_has_the_time_left(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.1, 12.0])
    monkeypatch.setattr("models.runtime.job.time.monotonic", lambda: next(clock))
    job.progress(0, 10, "ppo")
    job.progress(1, 10, "ppo")  # 0.1 s later: too soon to be written
    assert json.loads((job.out / "progress.json").read_text())["step"] == 0
    job.progress(4, 10, "ppo")  # 4 steps took 2 s, so the other 6 take 3 s
    state = json.loads((job.out / "progress.json").read_text())
    assert state == {"step": 4, "steps": 10, "eta_s": 3.0, "phase": "ppo"}


def run_job(spec: Path, out: Path, job: str = "prepare_policy") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"models.jobs.{job}", "--spec", str(spec), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_mistake_is_one_line_and_status_2(write_spec: Callable[..., Path], llama_dir: Path, tmp_path: Path) -> None:
    ended = run_job(write_spec("prepare_policy", inputs={"source": llama_dir}, colour="red"), tmp_path / "out")
    assert ended.returncode == 2
    assert ended.stderr == "error: Unknown setting 'colour' in PreparePolicySettings. Known: none.\n"


def test_spec_of_another_job_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from models.runtime.job import main

    spec = tmp_path / "spec.json"
    spec.write_text('{"job": "pretrain"}')
    with pytest.raises(SystemExit) as ended:
        main("evaluate", lambda job: None, ["--spec", str(spec), "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: The spec is for the job 'pretrain', but 'evaluate' was started.\n"


def test_finished_job_is_not_run_again(tmp_path: Path) -> None:
    from models.runtime.job import main

    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    (tmp_path / "result").mkdir()
    main("evaluate", lambda job: pytest.fail("ran again"), ["--spec", str(spec), "--out", str(tmp_path)])
