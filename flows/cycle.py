"""The loop: one turn of it per run, weekly by schedule or by hand. Read `orchestrator/stages/__init__.py` next.

A run that was killed is simply started again: finished stages are found in the ledger and not repeated.
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import training
from flows.ending import end_cycle, seen_at_work
from flows.forms import config_of
from flows.reporting import publish_report, report_anew, reported_if_stopped
from flows.running import OnPools, Runner, cycle_run_name
from flows.slots import PASSED_OVER, passed_over
from flows.states import as_state, say_what_is_left, told_in_a_line
from orchestrator import stages
from orchestrator.config import CycleConfig
from orchestrator.cycles.outcomes import WAITING, Outcome
from orchestrator.cycles.standing import give_up_abandoned
from orchestrator.cycles.turn import one_at_a_time, turn_to_take
from orchestrator.errors import ConfigError, CycleBlocked, CycleBusy, CycleCancelled, CyclePaused
from orchestrator.stages.promotion import Decided


@flow(name="cycle", flow_run_name=cycle_run_name, on_cancellation=[say_what_is_left])
@told_in_a_line(ConfigError)
async def cycle(
    configuration: str | None = None,
    iterations: int | None = None,
    kl_coef: float | None = None,
    policy_learning_rate: float | None = None,
    pm_learning_rate: float | None = None,
    min_comparisons: int | None = None,
    prompts_per_iteration: int | None = None,
    stop_at_kl_nats: float | None = None,
    evaluation_prompts: int | None = None,
    min_pm_accuracy: float | None = None,
    min_score_gain: float | None = None,
    min_gain_over_live: float | None = None,
    max_kl_nats: float | None = None,
    fresh: bool = False,
    overrides: list[str] = [],  # noqa: B006
    config: str | None = None,
) -> State:
    """One cycle: freeze the comparisons, train, judge, promote. Goes on with an interrupted one where it stopped.

    Fields left empty are as the configuration has them.

    Args:
        configuration: What to train, by name. `orchestrator register` offers what lies in `configs/` of the home.
        fresh: Build every artifact anew, even where one like it is there already.
        overrides: For what has no field here: section.key=value, e.g. ppo.epochs=1. Taken last.
        config: In place of the configuration above: a TOML file by its absolute path on the worker's machine.
    """
    asked = config_of(locals())
    if (why := await passed_over()) is not None:
        return Completed(name=PASSED_OVER, message=why)
    return as_state(await turn(asked, OnPools(), fresh=fresh))


async def turn(config: CycleConfig, run: Runner, *, fresh: bool = False) -> Outcome:
    """Take one turn, where no other run is at it and no other cycle is in the way."""
    try:
        async with one_at_a_time(config.cycle.second_trigger, run.queued):
            if await run.scheduled():
                await run.tell(await run.ask(give_up_abandoned, config))
            return await take(config, run, fresh)
    except CycleBusy as busy:
        return Outcome("Not started", str(busy))
    except CycleBlocked as blocked:
        return Outcome("Blocked", str(blocked))
    except CycleCancelled as cancelled:
        return Outcome("Cancelled", str(cancelled))
    except CyclePaused as paused:
        return Outcome("Stage done", str(paused))


async def take(config: CycleConfig, run: Runner, fresh: bool) -> Outcome:
    """Decide what there is to do, and do it."""
    turn = await run.ask(turn_to_take, config)
    if turn.skip:
        return Outcome(f"Skipped: {turn.found} of {turn.wanted}", turn.reason)
    await run.ask(stages.check_way_free, config)
    await run.ask(stages.check_named_inputs, config)
    cycle_id = await run.ask(stages.open_cycle, config, week_zero=turn.week_zero)
    async with seen_at_work(run, cycle_id, "cycle run"), reported_if_stopped(run, cycle_id):
        return await take_stages(config, run, cycle_id, fresh)


async def take_stages(config: CycleConfig, run: Runner, cycle_id: int, fresh: bool) -> Outcome:
    """Take the stages of a cycle in their order."""
    number = await run.ask(stages.cycle_number, cycle_id)
    await run.announce(f"cycle {number}: {config.name}", cycle_id)
    initial_id = await run.stage(stages.prepare_initial_policy, cycle_id, fresh=fresh)
    await run.stage(stages.deploy_initial_policy, cycle_id, initial_id)
    if number == 0:
        await run.ask(stages.close_cycle, cycle_id, "promoted", "The initial policy is before people.")
        return Outcome("Week 0", "The initial policy answers raters; a cycle begins with enough comparisons.")

    # What people said of earlier snapshots since: their reports, and the evidence of this cycle, get it.
    for earlier_id in await run.stage(stages.measure_elo, cycle_id):
        await report_anew(run, earlier_id)
    comparison_set_id = await run.stage(stages.freeze_comparisons, cycle_id, fresh=fresh)
    await run.stage(stages.check_data, cycle_id, comparison_set_id, fresh=fresh)
    models = await run.on_gpu(training.train_preference_model, cycle_id, comparison_set_id, initial_id, fresh=fresh)
    prompt_set_id = await run.stage(stages.build_prompts, cycle_id, comparison_set_id, fresh=fresh)
    if config.prompts.written:
        prompts = await run.on_gpu(training.write_prompts, cycle_id, initial_id, prompt_set_id, fresh=fresh)
        prompt_set_id = prompts.prompt_set_id
    trained = await run.on_gpu(
        training.train_policy, cycle_id, initial_id, models.preference_model_id, prompt_set_id,
        watcher_id=models.watcher_id, best_of=config.evaluation.best_of, fresh=fresh,
    )  # fmt: skip
    snapshot_id = trained.snapshot_id
    await run.on_gpu(
        training.evaluate_policies, cycle_id, initial_id, snapshot_id, models.preference_model_id, prompt_set_id,
        watcher_id=models.watcher_id, best_of=config.evaluation.best_of, fit_detector=config.ood is not None,
        fresh=fresh,
    )  # fmt: skip

    before_id, after_id = await run.ask(stages.evaluations_of, cycle_id, initial_id, snapshot_id)
    decision_id = await run.stage(stages.decide_promotion, cycle_id, snapshot_id, after_id, before_id)
    if decision_id is None:
        await publish_report(run, cycle_id)  # Whoever decides reads it.
        return Outcome(WAITING, await run.ask(stages.what_waits, cycle_id))
    return await end_cycle(run, cycle_id, Decided(decision_id, snapshot_id, initial_id))
