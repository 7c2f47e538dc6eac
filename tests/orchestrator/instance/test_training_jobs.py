"""Running a job process: its failures in a person's words, its lock, its end with its parent."""

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.errors import JobFailed, JobRefused
from orchestrator.instance import training_jobs

WAIT_S = 60.0


@pytest.fixture
def job_module(monkeypatch, tmp_path):
    """Install a module `models.jobs.<name>` for the job process only, through its PYTHONPATH."""

    def install(body: str) -> Path:
        root = tmp_path / "fake"
        folder = root / "models" / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        (root / "models" / "__init__.py").write_text("")
        (folder / "__init__.py").write_text("")
        (folder / "probe.py").write_text(textwrap.dedent(body))
        monkeypatch.setattr(training_jobs, "PROJECT_ROOT", root)
        return tmp_path / "work"

    return install


def run(work: Path) -> training_jobs.JobRun:
    return training_jobs.run_job(
        "probe", inputs={"text": Path("/data")}, settings={"threads": 2, "a": 1}, seed=7, work=work
    )


PUBLISH = """
    import argparse, json, pathlib
    parser = argparse.ArgumentParser(); parser.add_argument("--spec"); parser.add_argument("--out")
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    (out / "result").mkdir()
    (out / "result" / "results.json").write_text(pathlib.Path(args.spec).read_text())
"""


def test_the_job_gets_its_spec_and_its_result_is_found_again(job_module):
    work = job_module(PUBLISH)
    first = run(work)
    spec = json.loads((first.result / "results.json").read_text())
    assert spec == {
        "job": "probe",
        "inputs": {"text": "/data"},
        "settings": {"a": 1},
        "seed": 7,
        "threads": 2,
        "device": "auto",
    }
    assert first.seconds > 0
    assert run(work).seconds == 0.0


def test_a_persons_mistake_is_one_line(job_module):
    work = job_module('import sys; print("error: no pairs. Import some."); sys.exit(2)')
    with pytest.raises(JobRefused, match=r"^Job probe: no pairs\. Import some\. \(log: "):
        run(work)


def test_a_crash_carries_the_end_of_the_log(job_module):
    work = job_module('raise RuntimeError("out of memory")')
    with pytest.raises(JobFailed, match=r"ended with status 1(.|\n)*out of memory") as crash:
        run(work)
    assert not isinstance(crash.value, JobRefused)


def test_a_killed_job_names_the_signal(job_module):
    work = job_module("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(JobFailed, match="was ended by SIGKILL"):
        run(work)


def test_no_result_is_a_failure_even_with_status_0(job_module):
    work = job_module("pass")
    with pytest.raises(JobFailed, match="left no result"):
        run(work)


@pytest.mark.skipif(sys.platform != "linux", reason="death signals are Linux's")
def test_the_job_dies_with_the_process_that_started_it(job_module, tmp_path):
    pipe = tmp_path / "alive"
    os.mkfifo(pipe)
    # The job holds the pipe's writing end open; our read ends when the last writer is gone. Opened without blocking:
    # a job that never starts must fail the test and not hold it up.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def read() -> bytes:
        assert select.select([reader], [], [], WAIT_S)[0], f"nothing within {WAIT_S:.0f} s"
        return os.read(reader, 1)

    work = job_module(
        f"""
        import signal
        alive = open({str(pipe)!r}, "w"); alive.write("x"); alive.flush()
        signal.pause()
        """
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys; from orchestrator.instance import training_jobs as jobs\n"
            "jobs.PROJECT_ROOT = pathlib.Path(sys.argv[1])\n"
            "jobs.run_job('probe', inputs={}, settings={}, seed=0, work=pathlib.Path(sys.argv[2]))",
            str(training_jobs.PROJECT_ROOT),
            str(work),
        ]
    )
    try:
        assert read() == b"x"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert read() == b""
    finally:
        parent.kill()
        parent.wait()
        os.close(reader)
