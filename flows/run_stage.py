"""The form `run-stage`: go on with the open cycle, or begin one, as far as one stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.cycle import turn
from flows.forms import config_of
from flows.running import OnPools
from flows.states import as_state, say_what_is_left, told_in_a_line
from orchestrator import stages
from orchestrator.config import CycleConfig
from orchestrator.cycles.until import Stage, Until
from orchestrator.errors import ConfigError, CycleError


@flow(name="run-stage", flow_run_name="{stage}", on_cancellation=[say_what_is_left])
@told_in_a_line(ConfigError, CycleError)
async def run_stage(
    stage: Stage,
    configuration: str | None = None,
    fresh: bool = False,
    overrides: list[str] = [],  # noqa: B006
    config: str | None = None,
) -> State:
    """Go on with the open cycle up to one stage and end there; the cycle stays open, and its report says how it stands.

    What comes before the stage is found where it was made already, and made where it was not. The form of the cycle
    goes on from there, `cancel-cycle` gives the cycle up.

    Args:
        stage: The last one to do, as the list of a cycle's runs and tasks names them.
        configuration: Of a cycle to begin, by name. Empty, or the same: the cycle that is open.
        fresh: Do this one stage anew, even where it was done already.
        overrides: Of a cycle to begin: section.key=value, e.g. ppo.epochs=1.
        config: In place of the configuration above: a TOML file by its absolute path on the worker's machine.
    """
    run = OnPools(Until(stage, fresh=fresh))
    return as_state(await turn(await run.ask(_asked, locals()), run))


def _asked(filled: Mapping[str, Any]) -> CycleConfig:
    """The configuration of the form, or the open cycle's where none was filled in."""
    if any(filled[name] for name in ("configuration", "config", "overrides")):
        return config_of(filled)
    open_id = stages.open_cycle_id()
    if open_id is None:
        raise CycleError("No cycle is open. Choose a configuration to begin one.")
    return stages.cycle_config(open_id)
