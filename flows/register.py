"""Create the work pools, Prefect deployments and automation: `python -m flows.register`. Run again, it updates them.

What it is not given it leaves as it is: schedule and default configuration stay until others are given, or until they
are taken away by name. A schedule that was paused in the UI stays paused.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.cancelling import cancel_cycle
from flows.command_line import exit_status
from flows.cycle import cycle
from flows.deciding import BY_HAND, EXPIRY_CRON, expire_approvals
from flows.forms import form_of
from flows.healing import ensure_automation
from flows.notifying import ensure_notifications, wanted
from flows.robustness import robustness
from flows.run_stage import run_stage
from flows.training import GPU_FLOWS
from orchestrator.commands.running.register import configure
from orchestrator.config import CycleConfig, load_config
from orchestrator.config.known import known, remember
from orchestrator.cycles.telling import KEY
from orchestrator.errors import ConfigError
from orchestrator.instance.identity import own_prefect
from orchestrator.settings import Settings

POOLS = {
    "cpu": "Orders the stages of a cycle, and runs those that need no GPU",
    "gpu": "Trains and evaluates; one run at a time per worker",
}
ON_POOL: dict[str, tuple[Flow[..., Any], ...]] = {
    "cpu": (run_stage, cancel_cycle, *BY_HAND, expire_approvals),
    "gpu": (*GPU_FLOWS, robustness),
}
"""The flows beside the cycle, by the pool that runs them. Each one's Prefect deployment is named as the flow."""
CRONS: dict[str, str] = {expire_approvals.name: EXPIRY_CRON}
"""Of those, by the flow's name, when they begin by themselves (UTC); their schedules are not the operator's."""
COMMAND = "python -m flows.engine"
TAG = "orchestrator"
TO_LIVE = f"[What is live, and where the loop is](/artifacts/key/{KEY})"
SLUG = "configuration"
"""Of the schedule that a configuration set, beside others that the UI may have added."""


@dataclass(frozen=True)
class Choices:
    """What a person wants of the cycle's Prefect deployment."""

    name: str = "weekly"
    config_file: Path | None = None
    """Becomes the default, and its schedule is set."""
    no_schedule: bool = False


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


def description_of(flow: Flow[..., Any]) -> str:
    """What the UI says of a flow: its docstring but for the arguments, which the form describes, and a way on.

    UI v1 has no menu entry for artifacts, so that `live` is reached by a link alone.
    """
    return f"{(flow.description or '').partition('Args:')[0].strip()}\n\n{TO_LIVE}"


def deployment(
    flow: Flow[..., Any], name: str, pool: str, parameters: dict[str, Any] | None = None
) -> RunnerDeployment:
    """A Prefect deployment of one of our flows; the worker imports it by its module."""
    made = RunnerDeployment.from_flow(
        flow,
        name,
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=[TAG],
        parameters=parameters,
        description=description_of(flow),
    )
    # What counts as set is sent, and what is sent as empty is erased there.
    kept = {"schedules", "paused"} if parameters is not None else {"schedules", "paused", "parameters"}
    made.model_fields_set.difference_update(kept)
    made._parameter_openapi_schema = form_of(flow, known(Settings.from_env().home))
    return made


def default_parameters(choices: Choices, before: dict[str, Any]) -> dict[str, Any] | None:
    """What the cycle's form is filled with; None where that stays."""
    home = Settings.from_env().home
    if choices.config_file is not None:
        return {"configuration": remember(home, choices.config_file)}
    if "config" not in before:
        return None
    # An earlier version kept the file and no name.
    file = Path(before.pop("config"))
    return before | ({"configuration": remember(home, file)} if file.is_file() else {})


async def parameters_of(client: PrefectClient, full_name: str) -> dict[str, Any]:
    """The default parameters of a Prefect deployment; {} where it is not there."""
    try:
        return dict((await client.read_deployment_by_name(full_name)).parameters)
    except ObjectNotFound:
        return {}


def schedule_of(config_file: Path) -> CronSchedule:
    """When the configuration lets a cycle begin."""
    config: CycleConfig = load_config(config_file)
    return CronSchedule(cron=config.schedule.cron, timezone=config.schedule.timezone)


async def set_schedule(client: PrefectClient, found: DeploymentResponse, schedule: CronSchedule) -> None:
    """Set the schedule that is the configuration's; whether it is paused stays, and so do others from the UI."""
    before = sorted(await client.read_deployment_schedules(found.id), key=lambda each: each.slug != SLUG)
    if not before:
        created = DeploymentScheduleCreate(schedule=schedule, active=True, slug=SLUG)
        await client.create_deployment_schedules(found.id, [created])
    elif before[0].schedule != schedule:
        # Not deleted and made anew: that would take the run with it which is late because the server was down.
        await client.update_deployment_schedule(found.id, before[0].id, schedule=schedule)


async def remove_schedules(client: PrefectClient, found: DeploymentResponse) -> None:
    """Let no cycle begin by itself any more."""
    for each in await client.read_deployment_schedules(found.id):
        await client.delete_deployment_schedule(found.id, each.id)


async def remove_dead(client: PrefectClient, alive: set[str]) -> None:
    """Remove Prefect deployments that earlier versions registered under other names; cycles' stay."""
    flow_names = {flow.id: flow.name for flow in await client.read_flows()}
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    for found in await client.read_deployments(deployment_filter=ours):
        full_name = f"{flow_names.get(found.flow_id)}/{found.name}"
        if full_name not in alive and flow_names.get(found.flow_id) != cycle.name:
            await client.delete_deployment(found.id)
            print(f"removed {full_name}, which an earlier version registered", flush=True)


async def register(choices: Choices) -> None:
    """Create or update everything; the ids of what was there stay."""
    addresses = wanted()
    schedule = None if choices.config_file is None else schedule_of(choices.config_file)
    async with get_client() as client:
        defaults = default_parameters(choices, await parameters_of(client, f"{cycle.name}/{choices.name}"))
        others = [deployment(flow, flow.name, pool) for pool, flows in ON_POOL.items() for flow in flows]
        items = [deployment(cycle, choices.name, "cpu", defaults), *others]
        for pool in POOLS:
            await ensure_pool(client, pool)
        await ensure_automation(client)
        if (said := await ensure_notifications(client, addresses)) is not None:
            print(f"registered: {said}", flush=True)
        for item in items:
            await item.aapply()
            print(f"registered {item.flow_name}/{item.name} on pool {item.work_pool_name}", flush=True)
        for name, cron in CRONS.items():
            found = await client.read_deployment_by_name(f"{name}/{name}")
            await set_schedule(client, found, CronSchedule(cron=cron, timezone="UTC"))
        found = await client.read_deployment_by_name(items[0].full_name)
        if choices.no_schedule:
            await remove_schedules(client, found)
        elif schedule is not None:
            await set_schedule(client, found, schedule)
        await remove_dead(client, {item.full_name for item in items})
        print(await schedule_in_words(client, items[0].full_name), flush=True)


async def schedule_in_words(client: PrefectClient, full_name: str) -> str:
    """When cycles begin by themselves now, for the person who registered."""
    found = await client.read_deployment_by_name(full_name)
    lines = [
        f"{each.schedule.cron} {each.schedule.timezone or 'UTC'}"
        + ("" if each.active and not found.paused else " (paused)")
        if isinstance(each.schedule, CronSchedule)
        else "as set in the Prefect UI"
        for each in found.schedules
    ]
    return f"schedule of {full_name}: {', '.join(lines) or 'none; cycles begin by hand'}"


async def remove(name: str) -> None:
    """Remove a Prefect deployment of the cycle.

    Raises:
        ConfigError: there is none of the name.
    """
    async with get_client() as client:
        try:
            found = await client.read_deployment_by_name(f"{cycle.name}/{name}")
        except ObjectNotFound:
            raise ConfigError(f"There is no Prefect deployment {cycle.name}/{name}; nothing was removed.") from None
        await client.delete_deployment(found.id)
    print(f"removed {cycle.name}/{name}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and register."""
    parser = argparse.ArgumentParser(prog="orchestrator register", description="Create the Prefect deployments.")
    configure(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        own_prefect(claim=args.claim)
        choices = Choices(args.name, args.config, args.no_schedule)
        asyncio.run(remove(args.remove) if args.remove else register(choices))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
