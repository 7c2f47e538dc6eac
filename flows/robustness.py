"""The robustness experiment as one flow: two preference models on halves, PPO against one, both score the way.

On the `gpu` pool it is one run; `python -m flows.robustness --config FILE` is the same in this process, without a
Prefect server. Run again, it finds what was made. Read `orchestrator/judging/robustness.py` next.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.command_line import config_options, exit_status, printing
from flows.forms import config_of
from flows.running import OnPools, Runner, cycle_run_name
from flows.states import told_in_a_line
from orchestrator import stages
from orchestrator.config import CycleConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.stages import robustness as experiment


@flow(name="robustness", flow_run_name=cycle_run_name)
@told_in_a_line(ConfigError)
async def robustness(
    configuration: str | None = None,
    comparisons: str | None = None,
    iterations: int | None = None,
    kl_coef: float | None = None,
    policy_learning_rate: float | None = None,
    pm_learning_rate: float | None = None,
    fresh: bool = False,
    overrides: list[str] = [],  # noqa: B006
    config: str | None = None,
) -> State:
    """Train two preference models on halves of the comparisons, follow one with PPO, and see whether both agree.

    Fields left empty are as the configuration has them.

    Args:
        configuration: What to train, by name, as for a cycle. Its gates play no part.
        comparisons: Comparison set, by id or the beginning of its digest; the newest where left empty.
        fresh: Build every artifact anew, even where one like it is there already.
        overrides: For what has no field here: section.key=value, e.g. ppo.epochs=1. Taken last.
        config: In place of the configuration above: a TOML file by its absolute path on the worker's machine.
    """
    await halves(config_of(locals()), OnPools(), comparisons=comparisons, fresh=fresh)
    return Completed(message="Both preference models have judged the policies; see the report.")


async def halves(config: CycleConfig, run: Runner, *, comparisons: str | None = None, fresh: bool = False) -> str:
    """Take the stages of the experiment in their order; returns the report in Markdown."""
    config = experiment.with_halves(config)
    comparison_set_id = await run.ask(experiment.comparison_set, comparisons)
    await run.announce(f"robustness: {config.name}")
    initial_id = await run.stage(stages.prepare_initial_policy, config, fresh=fresh)
    pmp_id = None
    if config.pmp.files:
        pmp_id = await run.stage(stages.pretrain_preference_model, config, initial_id, fresh=fresh)
    model_id = await run.stage(
        stages.train_preference_model, config, comparison_set_id, initial_id, pmp_id, fresh=fresh
    )
    await run.stage(stages.check_preference_model, config, model_id, fresh=fresh)
    watcher_id = await run.stage(
        stages.train_watcher, config, comparison_set_id, initial_id, model_id, pmp_id, fresh=fresh
    )
    prompt_set_id = await run.stage(stages.build_prompts, config, comparison_set_id, fresh=fresh)
    run_id = await run.stage(stages.train_policy, config, initial_id, model_id, prompt_set_id, watcher_id, fresh=fresh)
    evaluation_ids = [
        await run.stage(
            stages.evaluate_policy, config, policy_id, initial_id, model_id, prompt_set_id, watcher_id, fresh=fresh
        )
        for policy_id in await run.ask(experiment.policies, initial_id, run_id)
    ]
    _, markdown = await run.stage(experiment.write_report, config, run_id, model_id, watcher_id, evaluation_ids)
    await run.report("robustness", markdown)
    return markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and run here; 0 for an experiment that ended, 2 for an error."""
    parser = config_options("orchestrator experiment robustness --inline")
    parser.add_argument("--comparisons")
    args = parser.parse_args(argv)

    def work() -> None:
        config: CycleConfig = load_config(args.config, args.set)
        asyncio.run(halves(config, printing(), comparisons=args.comparisons, fresh=args.fresh))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
