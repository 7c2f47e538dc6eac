"""Jobs that are forked from a process with torch in it end as those of the command line do."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.instance import training_jobs
from tests.models.tiny_folders import write_llama
from tests.warm_jobs import WarmJobs


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_forked_job_leaves_the_same_bytes(job_server: WarmJobs, tmp_path: Path) -> None:
    source = write_llama(tmp_path / "llama", template=None)

    def prepared(name: str) -> dict[str, bytes]:
        inputs = {"source": source}
        run = training_jobs.run_job("prepare_policy", inputs=inputs, settings={}, seed=0, work=tmp_path / name)
        return bytes_of(run.result)

    by_command = prepared("command")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_jobs, "_run", job_server.run)
        forked = prepared("forked")
    assert "model.safetensors" in forked
    assert forked == by_command


@pytest.mark.parametrize(
    ("statement", "status"), [("pass", 0), ("1 / 0", 1), ("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", -9)]
)
def test_it_tells_how_a_job_ended_and_its_log_is_written(
    job_server: WarmJobs, tmp_path: Path, statement: str, status: int
) -> None:
    # A module of the standard library that runs what it is given, once.
    command = [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", "-s", "import os", statement]
    assert job_server.run(command, log=tmp_path / "log", threads=1) == status
    assert ("ZeroDivisionError" in (tmp_path / "log").read_text()) == (statement == "1 / 0")


def test_jobs_run_beside_each_other_in_the_environment_of_now(
    job_server: WarmJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each waits until the other is there too.
    monkeypatch.setenv("MEET_IN", str(tmp_path))
    statement = (
        "folder = pathlib.Path(os.environ['MEET_IN']); (folder / f'here-{os.getpid()}').touch()\n"
        "while len(list(folder.glob('here-*'))) < 2: time.sleep(0.01)"
    )
    setup = "import os, pathlib, time"
    command = [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", "-s", setup, statement]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(job_server.run, command, log=tmp_path / f"log-{i}", threads=1) for i in range(2)]
        assert [run.result(60) for run in runs] == [0, 0]
