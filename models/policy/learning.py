"""How PPO learns from one rollout: rewards, advantages, and optimiser steps over its minibatches.

Called by the loop of models/jobs/train_policy.py; the maths is in models/policy/ppo.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from models.policy.critic import Critic
from models.policy.model import Policy, TokenReading
from models.policy.ppo import (
    adapted_kl_coef,
    advantages_and_returns,
    clipped_tokens,
    earned,
    inverse_spread,
    k1_kl,
    k3_kl,
    leave_one_out,
    policy_losses,
    scheduled_learning_rate,
    token_moves,
    token_rewards,
    value_losses,
    warmed_up,
    whiten,
)
from models.policy.reply_chunks import ReplyChunk
from models.policy.rollout import Rollout, RolloutCollector
from models.policy.settings import ADAM_BETAS, ADAM_EPS, MAX_GRADIENT_NORM, VALUE_HEAD_RATE, PPOSettings
from models.runtime.job import Job

CLIPPED, MOVED = "policy/clipfrac_avg", "watch/ratio_error"
Minibatches = Callable[[int, int, int], Iterator[list[int]]]
"""Rows of each minibatch, from iteration, epoch and the number of replies."""


class LearnerState(TypedDict):
    """What a checkpoint holds of the learner."""

    optimiser: dict[str, Any]
    optimiser_steps: int
    kl_coef: float
    rate_factor: NotRequired[float]
    """Not in a checkpoint of before there were recoveries."""


class PolicyLearner:
    """The optimiser of policy and critic with what moves from rollout to rollout: its steps and the KL coefficient."""

    def __init__(
        self,
        job: Job,
        settings: PPOSettings,
        policy: Policy,
        critic: Critic | None,
        collector: RolloutCollector,
        minibatches: Minibatches,
    ) -> None:
        """`critic` is None where the settings' advantages need none."""
        self.job, self.settings, self.policy, self.critic = job, settings, policy, critic
        self.collector, self.minibatches = collector, minibatches
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [parameter for parameter in policy.model.parameters() if parameter.requires_grad]},
                *([{"params": list(critic.head.parameters())}] if critic else []),
                *([{"params": critic.own_trunk}] if critic and critic.own_trunk else []),
            ],
            lr=settings.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPS,
            weight_decay=0.0,
            fused=True,
        )
        self.optimiser_steps = 0
        self.kl_coef = settings.kl_coef
        self.rate_factor = 1.0  # smaller after a recovery

    @property
    def state(self) -> LearnerState:
        """For the checkpoint; the weights are the job's."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "optimiser_steps": self.optimiser_steps,
            "kl_coef": self.kl_coef,
            "rate_factor": self.rate_factor,
        }

    def restore(self, state: LearnerState) -> None:
        """Go on from a checkpoint, after the weights were put back."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.optimiser_steps, self.kl_coef = state["optimiser_steps"], state["kl_coef"]
        self.rate_factor = state.get("rate_factor", 1.0)

    def learn(
        self, iteration: int, rollout: Rollout, first_chunks: Sequence[Sequence[ReplyChunk]]
    ) -> dict[str, float] | None:
        """All epochs over one rollout; means over them, or None where a loss was not finite."""
        settings, mask = self.settings, rollout.response_mask
        token_kl = self._token_kl(rollout, first_chunks)
        scores = earned(rollout.scores, rollout.truncated, settings.cut_off_penalty)
        rewards = token_rewards(scores, token_kl, mask, self.kl_coef, settings.kl_placement)
        advantages, returns = self._advantages(rollout, rewards)
        loss_kl_coef = self.kl_coef if settings.kl_in_loss else 0.0
        if settings.whiten_advantages:
            # A KL term in the loss weighs against the advantages, and is scaled as they are.
            loss_kl_coef *= float(inverse_spread(advantages[mask]))
            advantages[mask] = whiten(advantages[mask])
        kept = (rollout.logps, rollout.ref_logps, rollout.values, advantages, returns)
        old = _OldTokens(*(x.reshape(-1) for x in kept))
        samples = (iteration + 1) * settings.replies_per_iteration
        rate = scheduled_learning_rate(
            settings.learning_rate * self.rate_factor,
            samples,
            warmup_samples=settings.warmup_samples,
            halve_every_samples=settings.halve_every_samples or 0,
        )
        warming = iteration < settings.critic_warmup_iterations
        steps: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            for number, rows in enumerate(self.minibatches(iteration, epoch, len(mask))):
                chunks = (
                    first_chunks[number]
                    if epoch == 0
                    else self.collector.chunks(rollout.completions, rows, mask.shape[1])
                )
                self._set_rates(rate)
                step = self._step(chunks, old, loss_kl_coef, warming)
                if step is None:
                    return None
                steps.append(step)
        means = {name: math.fsum(step[name] for step in steps) / len(steps) for name in steps[0]}
        learned = (
            means
            | _watched(steps)
            | {
                "val/ratio_first": steps[0]["val/ratio"],
                "val/ratio_var": statistics.pvariance(step["val/ratio"] for step in steps),
                **self._explained(rollout, returns),
                "lr": self.optimiser.param_groups[0]["lr"],
                "kl_coef": self.kl_coef,
            }
        )
        if settings.kl_target_nats is not None and not warming:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef,
                float(rollout.kl_nats.mean()),
                settings.kl_target_nats,
                len(mask),
                settings.kl_horizon_samples,
            )
        return learned

    def _advantages(self, rollout: Rollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and the critic's targets, (B, R) each; without a critic the latter are 0."""
        settings, mask = self.settings, rollout.response_mask
        if self.critic is None:
            return leave_one_out(rewards, mask, settings.samples_per_prompt), torch.zeros_like(rewards)
        return advantages_and_returns(rewards, rollout.values, mask, settings.discount, settings.gae_lambda)

    def _explained(self, rollout: Rollout, returns: Tensor) -> dict[str, float]:
        """How much of the returns' variance the critic explained, in metrics; nothing without one."""
        if self.critic is None:
            return {}
        mask = rollout.response_mask
        explained = 1 - (returns - rollout.values)[mask].var(correction=0) / returns[mask].var(correction=0)
        return {"val/explained_variance": float(explained)}

    def _set_rates(self, rate: float) -> None:
        """The next step's learning rate of each group, which warms up from the group's own first step.

        A critic learns before its policy does where it warms up alone, and must not use the policy's warm-up.
        """
        warmup = self.settings.warmup_steps
        for number, group in enumerate(self.optimiser.param_groups):
            # Counting the steps waits for the device.
            factor = warmed_up(self._steps_of(group), warmup) if warmup else 1.0
            group["lr"] = rate * factor * (VALUE_HEAD_RATE if number == 1 else 1.0)

    def _steps_of(self, group: Mapping[str, Any]) -> int:
        """Steps that a group's weights have taken, as the optimiser counts them: it comes back with a checkpoint."""
        states = (self.optimiser.state.get(parameter) for parameter in group["params"])
        return next((int(state["step"]) for state in states if state), 0)

    @torch.no_grad()
    def _token_kl(self, rollout: Rollout, chunks: Sequence[Sequence[ReplyChunk]]) -> Tensor:
        """(B, R) KL at each token by the estimator of the settings."""
        if self.settings.kl_estimator == "k1":
            return k1_kl(rollout.logps, rollout.ref_logps)
        if self.settings.kl_estimator == "k3":
            return k3_kl(rollout.logps, rollout.ref_logps)
        exact = torch.zeros_like(rollout.logps)
        for chunk in (chunk for minibatch in chunks for chunk in minibatch):
            kl = self.policy.tokens(chunk, kl_to=self.collector.reference).kl
            assert kl is not None
            exact.view(-1)[chunk.places] = kl
        return exact

    def _read(self, chunk: ReplyChunk, loss_kl_coef: float, warming: bool) -> TokenReading:
        """What the policy says of a chunk now, with the exact KL where the loss has it."""
        exact = bool(loss_kl_coef) and not warming and self.settings.kl_estimator == "full"
        with torch.set_grad_enabled(not warming):
            # Read again in every epoch: keeping (N, V) reference logits of a whole rollout would cost more than time.
            return self.policy.tokens(chunk, kl_to=self.collector.reference if exact else None)

    def _step(
        self, chunks: Sequence[ReplyChunk], old: _OldTokens, loss_kl_coef: float, warming: bool
    ) -> dict[str, float] | None:
        """One optimiser step on one minibatch; every reply token weighs the same.

        While the critic warms up, the policy gets no gradient, and neither does a trunk that both share.
        """
        settings = self.settings
        count = sum(len(chunk.targets) for chunk in chunks)
        sums = torch.zeros(7, device=self.job.device)
        self.optimiser.zero_grad(set_to_none=True)
        for chunk in chunks:
            read = self._read(chunk, loss_kl_coef, warming)
            logps = read.logps
            then = old.at(chunk.places)
            policy_loss = policy_losses(logps, then.logps, then.advantages, settings.clip_ratio).sum() / count
            loss, value_loss = policy_loss, torch.zeros_like(policy_loss)
            if self.critic is not None:
                values = self.critic(chunk, read.states)
                value_loss = value_losses(values, then.values, then.returns, settings.value_clip).sum() / count
                loss = loss + settings.value_coef * value_loss
            if loss_kl_coef and not warming:
                token_kl = k3_kl(logps, then.ref_logps) if read.kl is None else read.kl
                loss = loss + loss_kl_coef * token_kl.sum() / count
            loss.backward()
            with torch.no_grad():
                change = logps.detach() - then.logps
                clipped = clipped_tokens(logps, then.logps, then.advantages, settings.clip_ratio)
                approximate_kl = 0.5 * (change**2).sum() / count
                ratio = change.exp().sum() / count
                moved = token_moves(logps, then.logps).sum() / count
                sums += torch.stack(
                    [
                        policy_loss,
                        value_loss,
                        approximate_kl,
                        clipped.sum() / count,
                        ratio,
                        read.entropies.sum() / count,
                        moved,
                    ]
                )
        if not bool(torch.isfinite(sums).all()):
            return None
        norms = self._clip_gradients()
        # Before the step: it would turn every weight into NaN, and the next rollout with them.
        if not all(bool(torch.isfinite(each)) for each in norms):
            return None
        self.optimiser.step()
        self.optimiser_steps += 1
        names = (
            "loss/policy_avg",
            "loss/value_avg",
            "policy/approxkl_avg",
            CLIPPED,
            "val/ratio",
            "policy/entropy_avg",
            MOVED,
        )
        step = dict(zip(names, sums.tolist(), strict=True)) | {"gradient_norm": float(norms[0])}
        if self.critic is None:
            del step["loss/value_avg"]
        return step

    def _clip_gradients(self) -> list[Tensor]:
        """Shorten gradients that are too long; gives their norms before, the policy's first."""
        policy, critic = list(self.policy.model.parameters()), self.critic
        if critic is None:
            return [torch.nn.utils.clip_grad_norm_(policy, MAX_GRADIENT_NORM)]
        # A critic with a trunk of its own is a model of its own: its gradient must not shrink the policy's.
        own, head = critic.own_trunk, list(critic.head.parameters())
        norms = [torch.nn.utils.clip_grad_norm_(policy if own else policy + head, MAX_GRADIENT_NORM)]
        if own:
            norms.append(torch.nn.utils.clip_grad_norm_(own + head, MAX_GRADIENT_NORM))
        return norms


def _watched(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the wires on learning look at: means over the steps after the first, before which nothing has moved.

    With it they could not exceed a half where a rollout is learned from in two steps.
    """
    later = steps[1:] or steps
    moved, clipped = (math.fsum(step[name] for step in later) / len(later) for name in (MOVED, CLIPPED))
    return {MOVED: moved, "watch/clip_fraction": clipped}


@dataclass(frozen=True)
class _OldTokens:
    """What the rollout knew about each reply token, flat."""

    logps: Tensor
    ref_logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def at(self, places: Tensor) -> _OldTokens:
        kept = (self.logps, self.ref_logps, self.values, self.advantages, self.returns)
        return _OldTokens(*(x[places] for x in kept))
