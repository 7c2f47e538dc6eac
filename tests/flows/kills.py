"""Kill a flow, a job or a worker in the middle of a stage, and count what the ledger says was done."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.instance.up import Instance
from orchestrator.stages.fresh_agreement import last_model
from tests.flows.tiny_cycle import start_command

Victim = Literal["flow", "job", "worker", "worker-cpu", "prefect-server"]
WAIT_S = 300.0
JOBS = {
    "prepare_initial_policy": "pretrain",
    "train_preference_model": "train_preference_model",
    "train_policy": "train_policy",
    "evaluate_policy": "evaluate",
}


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: str


def processes() -> list[Process]:
    """Every live process of the machine that we may look at."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if command:
                found.append(Process(int(entry.name), parent, command))
    return found


def job_of(home: Path, stage: str) -> Process | None:
    """The running job of a stage."""
    wanted = f"-m models.jobs.{JOBS[stage]} "
    return next((found for found in processes() if wanted in found.command and str(home) in found.command), None)


def flow_process(instance: Instance, flow: str = "cycle") -> Process:
    """The process of the only run of a flow; those that a worker begins every ten minutes may be at work beside it."""
    running = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    [run] = PrefectApi(instance.prefect_api_url).flow_runs(running)
    [found] = [found for found in processes() if "flows.engine" in found.command and run["id"] in environment(found)]
    return found


def environment(process: Process) -> str:
    """The environment that a process was started with; nothing where it has ended."""
    try:
        return Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def run_and_kill(
    instance: Instance, config: Path, stage: str, victim: Victim, *options: str, statuses: tuple[int, ...] = (2,)
) -> str:
    """Run a cycle, kill the victim while the stage's job runs, and give what `cycle run` printed."""
    command = start_command(instance.home, "cycle", "run", "--config", str(config), *options)
    deadline = time.monotonic() + WAIT_S
    while (job := job_of(instance.home, stage)) is None:
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < deadline, f"no job of {stage}"
        time.sleep(0.05)
    if victim == "job":
        os.kill(job.pid, signal.SIGKILL)
    elif victim == "flow":
        os.kill(flow_process(instance).pid, signal.SIGKILL)
    else:
        process = instance.children["worker-gpu" if victim == "worker" else victim].process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
    printed, _ = command.communicate(timeout=WAIT_S)
    assert command.returncode in statuses, printed
    return printed


def stages_done(url: str, cycle_number: int) -> Counter[str]:
    """How often each stage of a cycle made its artifact, finding it not counted."""
    engine = create_engine(url)
    with Session(engine) as session:
        rows = session.scalars(
            select(t.Stage.name)
            .join(t.Cycle, t.Cycle.id == t.Stage.cycle_id)
            .where(t.Cycle.number == cycle_number, t.Stage.state == "done", t.Stage.artifact_id.is_not(None))
        )
        done = Counter(rows)
    engine.dispose()
    return done


def had_a_model_before(url: str, cycle_number: int) -> bool:
    """Whether an earlier week's preference model was there to be asked about the cycle's comparisons."""
    engine = create_engine(url)
    with Session(engine) as session:
        cycle_id = session.scalars(select(t.Cycle.id).where(t.Cycle.number == cycle_number)).one()
        found = last_model(session, cycle_id)
    engine.dispose()
    return found is not None


def digests(url: str, cycle_number: int) -> dict[str, str]:
    """Digest by kind of what a cycle's finished stages ended with; where there are several, of the last."""
    engine = create_engine(url)
    with Session(engine) as session:
        rows = session.execute(
            select(t.Artifact.kind, t.Artifact.digest)
            .join(t.Stage, t.Stage.artifact_id == t.Artifact.id)
            .join(t.Cycle, t.Cycle.id == t.Stage.cycle_id)
            .where(t.Cycle.number == cycle_number)
            .order_by(t.Stage.id)
        )
        found = {row.kind: row.digest for row in rows}
    engine.dispose()
    return found
