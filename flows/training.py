"""What needs a GPU: flows of the `gpu` work pool, one stage or a few that belong together.

Each returns the artifacts its stages ended with. Where it ran elsewhere, the caller reads them from the ledger.
"""

from __future__ import annotations

import asyncio

from prefect import flow

from orchestrator import stages
from orchestrator.settings import Settings


@flow(name="train-preference-model")
async def train_preference_model(
    cycle_id: int, comparison_set_id: int, initial_id: int, fresh: bool = False
) -> list[int]:
    """Train the preference model and check it: held-out accuracy, and no sign the wrong way round."""
    model_id = await asyncio.to_thread(
        stages.train_preference_model, cycle_id, comparison_set_id, initial_id, fresh=fresh
    )
    await asyncio.to_thread(stages.check_preference_model, cycle_id, model_id, fresh=fresh)
    return [model_id]


@flow(name="train-policy")
async def train_policy(
    cycle_id: int, initial_id: int, preference_model_id: int, prompt_set_id: int, fresh: bool = False
) -> list[int]:
    """PPO from the initial policy against the preference model."""
    return [
        await asyncio.to_thread(
            stages.train_policy, cycle_id, initial_id, preference_model_id, prompt_set_id, fresh=fresh
        )
    ]


@flow(name="evaluate-policies")
async def evaluate_policies(
    cycle_id: int,
    initial_id: int,
    snapshot_id: int,
    preference_model_id: int,
    prompt_set_id: int,
    best_of: int = 1,
    fresh: bool = False,
) -> list[int]:
    """Score the initial policy, the snapshot and, as a yardstick, the best of n replies of the initial policy.

    One after the other, or several at once where `ORCHESTRATOR_JOBS_AT_ONCE` admits that.
    """
    free = asyncio.Semaphore(Settings.from_env().jobs_at_once)

    async def evaluate(policy_id: int, n: int) -> int:
        async with free:
            return await asyncio.to_thread(
                stages.evaluate_policy,
                cycle_id,
                policy_id,
                initial_id,
                preference_model_id,
                prompt_set_id,
                best_of=n,
                fresh=fresh,
            )

    # The yardstick takes longest, so it begins first.
    yardstick = [evaluate(initial_id, best_of)] if best_of > 1 else []
    return await asyncio.gather(*yardstick, evaluate(initial_id, 1), evaluate(snapshot_id, 1))


GPU_FLOWS = (train_preference_model, train_policy, evaluate_policies)
