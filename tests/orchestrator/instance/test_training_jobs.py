"""Running a job process: its failures in a person's words, its lock, its end with its parent."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flows.threads import in_thread
from orchestrator.errors import CycleCancelled, DiskFull, JobFailed, JobRefused
from orchestrator.instance import training_jobs
from tests.paths import PROJECT_ROOT

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


def run(work: Path, check_wanted=lambda: None) -> training_jobs.JobRun:
    inputs, settings = {"text": Path("/data")}, {"threads": 2, "a": 1}
    return training_jobs.run_job(
        "probe", inputs=inputs, settings=settings, seed=7, work=work, check_wanted=check_wanted
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


ASKED_TO_END = """
    import pathlib, signal, sys
    out = pathlib.Path(sys.argv[-1])
    def end(*_):
        (out / "asked").write_text("")
        {then}
    signal.signal(signal.SIGTERM, end)
    (out / "begun").write_text("")
    while True:
        signal.pause()
"""


@pytest.mark.parametrize(("then", "grace_s", "signal_"), [("sys.exit(0)", 60.0, None), ("pass", 0.3, signal.SIGKILL)])
def test_a_job_that_nobody_wants_is_asked_to_end_and_then_killed(job_module, monkeypatch, then, grace_s, signal_):
    work = job_module(ASKED_TO_END.format(then=then))
    monkeypatch.setattr(training_jobs, "GRACE_S", grace_s)
    monkeypatch.setattr(training_jobs, "CHECK_S", 0.0)
    ended = []
    real = training_jobs.end
    monkeypatch.setattr(training_jobs, "end", lambda process: ended.append(process) or real(process, grace_s))

    def check_wanted():
        if (work / "begun").exists():
            raise CycleCancelled("Cycle 1 is cancelled.")

    with pytest.raises(CycleCancelled):
        run(work, check_wanted)
    assert (work / "asked").exists()
    assert [process.returncode for process in ended] == [-signal_ if signal_ else 0]


def test_a_run_that_is_ended_from_outside_its_thread_ends_its_job(job_module):
    """A thread can't be cancelled: it goes on until its job ends."""
    work = job_module(ASKED_TO_END.format(then="sys.exit(3)"))

    async def cancelled() -> None:
        task = asyncio.create_task(in_thread(run, work))
        while not (work / "begun").exists():
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    # It returns when the thread has, and so when the job has.
    asyncio.run(asyncio.wait_for(cancelled(), WAIT_S))
    assert (work / "asked").exists()


FULL = r"^The disk of \S+work is full: .+ of .+ GB free, and what job probe makes could not be written\. Make about "


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
def test_a_full_disk_that_has_no_room_for_the_log_either_is_one_line(job_module):
    work = job_module(
        """
        from models.runtime.job import main
        def run(job):
            print("step 1")
        main("probe", run)
        """
    )
    # The module beside the one that is stood in for.
    runtime = training_jobs.PROJECT_ROOT / "models" / "runtime"
    runtime.symlink_to(PROJECT_ROOT / "models" / "runtime")
    work.mkdir()
    (work / "job.log").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=FULL) as full:
        training_jobs.run_job("probe", inputs={}, settings={}, seed=7, work=work)
    assert "\n" not in str(full.value)
    assert str(full.value).endswith("1.1 GB free there, then run the cycle again; it goes on where it stopped.")


def test_a_library_that_met_a_full_disk_is_understood_by_its_words(job_module, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    with (weights / "model.safetensors").open("wb") as file:
        file.truncate(2 * 10**9)
    work = job_module('raise RuntimeError("I/O error: No space left on device (os error 28)")')
    # 4 times 2 GB: weights, two moments, the result.
    with pytest.raises(DiskFull, match=FULL + r"8\.0 GB free there"):
        training_jobs.run_job("probe", inputs={"policy": weights}, settings={}, seed=7, work=work)


def test_a_job_that_wrote_nothing_is_not_quoted(job_module):
    work = job_module("import os; os._exit(1)")
    with pytest.raises(JobFailed, match=r"ended with status 1\..* It wrote nothing to its log \(\S+job\.log\)\.$"):
        run(work)
