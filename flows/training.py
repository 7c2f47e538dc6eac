"""What needs a GPU: flows of the `gpu` work pool, one stage or a few that belong together.

Each returns the artifacts it made (`made.py`). Where it ran elsewhere, the caller reads them from the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from flows.made import Evaluated, PreferenceModels, TrainedPolicy, WrittenPrompts
from flows.states import gpu_flow
from flows.threads import in_thread
from orchestrator import stages
from orchestrator.settings import Settings


@gpu_flow("train-preference-model")
async def train_preference_model(
    cycle_id: int, comparison_set_id: int, initial_id: int, fresh: bool = False
) -> PreferenceModels:
    """Train the preference model and check it: held-out accuracy, and no sign the wrong way round. Then its twin.

    Before that the last one is asked what it makes of this week's comparisons.
    """
    config = await in_thread(stages.cycle_config, cycle_id)
    await in_thread(stages.check_fresh_agreement, cycle_id, comparison_set_id, fresh=fresh)
    pmp_id = watcher_id = None
    if config.pmp.files:
        pmp_id = await in_thread(stages.pretrain_preference_model, cycle_id, initial_id, fresh=fresh)
    model_id = await in_thread(
        stages.train_preference_model, cycle_id, comparison_set_id, initial_id, pmp_id, fresh=fresh
    )
    await in_thread(stages.check_preference_model, cycle_id, model_id, fresh=fresh)
    if config.preference_model.twin != "off":
        watcher_id = await in_thread(
            stages.train_watcher, cycle_id, comparison_set_id, initial_id, model_id, pmp_id, fresh=fresh
        )
    return PreferenceModels(model_id, watcher_id)


@gpu_flow("write-prompts")
async def write_prompts(cycle_id: int, initial_id: int, prompt_set_id: int, fresh: bool = False) -> WrittenPrompts:
    """Let the initial policy write more training prompts after people's."""
    written = await in_thread(stages.write_prompts, cycle_id, initial_id, prompt_set_id, fresh=fresh)
    return WrittenPrompts(written)


@gpu_flow("train-policy")
async def train_policy(
    cycle_id: int,
    initial_id: int,
    preference_model_id: int,
    prompt_set_id: int,
    watcher_id: int | None = None,
    best_of: int = 1,
    fresh: bool = False,
) -> TrainedPolicy:
    """PPO from the initial policy against the preference model, watched by its twin where there is one.

    Where `ORCHESTRATOR_JOBS_AT_ONCE` admits more than one job, the initial policy is scored beside it.
    """
    policies = Policies(cycle_id, initial_id, preference_model_id, prompt_set_id, watcher_id)
    training = policies.train(fresh)
    scoring = policies.score_initial(best_of, fresh) if policies.several_at_once else []
    snapshot_id, *_ = await asyncio.gather(training, *scoring)
    return TrainedPolicy(snapshot_id)


@gpu_flow("evaluate-policies")
async def evaluate_policies(
    cycle_id: int,
    initial_id: int,
    snapshot_id: int,
    preference_model_id: int,
    prompt_set_id: int,
    watcher_id: int | None = None,
    best_of: int = 1,
    fit_detector: bool = False,
    fresh: bool = False,
) -> Evaluated:
    """Score the snapshot, the live and the initial policy and, as a yardstick, the best of n replies of the latter.

    One after the other, or several at once where `ORCHESTRATOR_JOBS_AT_ONCE` admits that. What was scored beside PPO
    is found. With `fit_detector` a detector of far requests is fitted too.
    """
    policies = Policies(cycle_id, initial_id, preference_model_id, prompt_set_id, watcher_id)
    initial = policies.score_initial(best_of, fresh and not policies.several_at_once)
    live_id = await in_thread(stages.live_to_score, cycle_id, initial_id, snapshot_id)
    live = [policies.score(live_id, fresh=fresh)] if live_id is not None else []
    *_, evaluation_id = await asyncio.gather(*initial, *live, policies.score(snapshot_id, fresh=fresh))
    if fit_detector:
        await in_thread(stages.fit_ood_detector, cycle_id, initial_id, prompt_set_id, fresh=fresh)
    return Evaluated(evaluation_id)


class Policies:
    """The jobs on a cycle's policies, as many at once as the machine admits."""

    def __init__(
        self, cycle_id: int, initial_id: int, preference_model_id: int, prompt_set_id: int, watcher_id: int | None
    ) -> None:
        self.cycle_id, self.initial_id, self.watcher_id = cycle_id, initial_id, watcher_id
        self.preference_model_id, self.prompt_set_id = preference_model_id, prompt_set_id
        at_once = Settings.from_env().jobs_at_once
        self.several_at_once = at_once > 1
        self._free = asyncio.Semaphore(at_once)

    async def train(self, fresh: bool) -> int:
        """Train the snapshot."""
        async with self._free:
            return await in_thread(
                stages.train_policy,
                self.cycle_id,
                self.initial_id,
                self.preference_model_id,
                self.prompt_set_id,
                self.watcher_id,
                fresh=fresh,
            )

    async def score(self, policy_id: int, best_of: int = 1, *, fresh: bool) -> int:
        """Score a policy, or the best of n of its replies."""
        async with self._free:
            return await in_thread(
                stages.evaluate_policy,
                self.cycle_id,
                policy_id,
                self.initial_id,
                self.preference_model_id,
                self.prompt_set_id,
                self.watcher_id,
                best_of=best_of,
                fresh=fresh,
            )

    def score_initial(self, best_of: int, fresh: bool) -> list[Coroutine[Any, Any, int]]:
        """What the snapshot is measured against. The best of n takes longest, so it begins first."""
        several = [self.score(self.initial_id, best_of, fresh=fresh)] if best_of > 1 else []
        return [*several, self.score(self.initial_id, fresh=fresh)]


GPU_FLOWS = (train_preference_model, write_prompts, train_policy, evaluate_policies)
