"""Create the work pools, Prefect deployments and automation: `python -m flows.register`. Run again, it updates them."""

from __future__ import annotations

import argparse
import asyncio
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import Flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.command_line import exit_status
from flows.cycle import cycle
from flows.healing import ensure_automation
from flows.notifying import ensure_notifications, wanted
from flows.robustness import robustness
from flows.running import GPU
from flows.training import GPU_FLOWS
from orchestrator.config import CycleConfig, load_config

POOLS = {
    "cpu": "Orders the stages of a cycle, and runs those that need no GPU",
    "gpu": "Trains and evaluates; one run at a time per worker",
}
COMMAND = "python -m flows.engine"


async def ensure_pool(client: PrefectClient, name: str) -> None:
    """Create the work pool where it is missing, with our command to start a flow's process."""
    template = copy.deepcopy(ProcessWorker.get_default_base_job_template())
    # Given a command, a worker starts it directly; else it starts another process first to find out how.
    template["variables"]["properties"]["command"]["default"] = COMMAND
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        pool = WorkPoolCreate(name=name, type="process", description=POOLS[name], base_job_template=template)
        await client.create_work_pool(pool, overwrite=True)
    else:
        await client.update_work_pool(name, WorkPoolUpdate(description=POOLS[name], base_job_template=template))


def deployment(flow: Flow[..., Any], name: str, pool: str, **options: Any) -> RunnerDeployment:
    """A Prefect deployment of one of our flows; the worker imports it by its module."""
    return RunnerDeployment.from_flow(
        flow, name, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH, tags=["orchestrator"], **options
    )


def cycle_deployment(name: str, config_file: Path | None) -> RunnerDeployment:
    """The deployment that an operator starts cycles with; with a configuration it has its schedule too."""
    options: dict[str, Any] = {}
    if config_file is not None:
        config: CycleConfig = load_config(config_file)
        options["parameters"] = {"config": str(config_file.absolute())}
        options["schedule"] = CronSchedule(cron=config.schedule.cron, timezone=config.schedule.timezone)
    return deployment(cycle, name, "cpu", **options)


async def register(name: str, config_file: Path | None) -> None:
    """Create or update everything; the ids of what was there stay."""
    addresses = wanted()
    async with get_client() as client:
        for pool in POOLS:
            await ensure_pool(client, pool)
        await ensure_automation(client)
        if (said := await ensure_notifications(client, addresses)) is not None:
            print(f"registered: {said}", flush=True)
    on_gpu = [deployment(flow, GPU, "gpu") for flow in (*GPU_FLOWS, robustness)]
    for item in [cycle_deployment(name, config_file), *on_gpu]:
        await asyncio.to_thread(item.apply)
        print(f"registered {item.flow_name}/{item.name} on pool {item.work_pool_name}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and register."""
    parser = argparse.ArgumentParser(prog="orchestrator register", description="Create the Prefect deployments.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default configuration; its schedule is set")
    parser.add_argument("--name", default="weekly", help="name of the cycle's deployment (default: weekly)")
    args = parser.parse_args(argv)
    return exit_status(lambda: asyncio.run(register(args.name, args.config)))


if __name__ == "__main__":
    sys.exit(main())
