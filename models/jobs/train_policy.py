"""Job: train a policy with PPO against a preference model, from the initial policy.

Inputs: `initial` (prepared policy), `preference_model` and `prompts` (prompt set); optionally `watcher`, a second
preference model that only looks on, and `comparisons`, whose held-out part measures mean log-p accuracy. The result is
a Hugging Face folder. `PolicyTraining.run` is the loop; settings are in models/ppo_settings.py, the maths in
models/ppo.py, sampling in models/rollout.py, the tripwires in models/watch.py.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.adapters import learned_state, restore
from models.chat import ChatFormat
from models.critic import Critic
from models.huggingface import embedding_table, model_card
from models.jobs.policy_inputs import prompts_that_fit
from models.jobs.policy_monitor import PolicyMonitor
from models.jobs.roles import Roles
from models.jobs.runtime import Job, JobError, main, settings_from
from models.policy import Policy, ReplyChunk, selected_logps
from models.ppo import (
    adapted_kl_coef,
    advantages_and_returns,
    clipped_tokens,
    full_kl,
    inverse_spread,
    k1_kl,
    k3_kl,
    policy_losses,
    scheduled_learning_rate,
    token_rewards,
    value_losses,
    whiten,
)
from models.ppo_settings import ADAM_BETAS, ADAM_EPS, MAX_GRADIENT_NORM, VALUE_HEAD_RATE, PPOSettings, choices
from models.precision import note_precision
from models.preference import PreferenceModel
from models.prompts import KINDS, PromptSetError, PromptStream
from models.rollout import SAMPLER_BOUNDS, Rollout, RolloutCollector
from models.sampler import DecodeEngine, SamplingParams
from models.sampler_random import derive_seed, permutation
from models.snapshots import SnapshotKeeper
from models.throughput import Stopwatch, learning_operations, peak_flops

NAME = "train_policy"
# Purposes of random numbers, so that no two of them share a stream.
_SAMPLE, _SHUFFLE, _PROMPTS, _MEASURE = range(4)


def run(job: Job) -> None:
    """Train and publish a snapshot.

    Raises:
        JobError: the inputs don't belong together, or no optimiser step was taken.
    """
    settings = settings_from(PPOSettings, job.settings)
    chat = ChatFormat.load(job.input("initial"))
    training = PolicyTraining(job, settings, chat)
    results = training.run()

    def write(folder: Path) -> None:
        facts = {key: value for key, value in results.items() if not isinstance(value, (list, dict))}
        training.roles.save_policy(folder, chat, model_card("Policy snapshot", CARD, facts, tags=("ppo",)))
        if settings.snapshots:
            results["snapshots"] = training.snapshots.copy_chosen(folder / "snapshots")

    job.publish(write, results)
    shutil.rmtree(training.snapshots.folder, ignore_errors=True)


CARD = (
    "A policy trained with PPO against a preference model, starting from the initial policy. "
    "`kl_nats` is its distance from the initial policy per reply, on training prompts."
)


class PolicyTraining:
    """The PPO loop: sample, score, learn; resumable after any iteration that was checkpointed."""

    def __init__(
        self, job: Job, settings: PPOSettings, chat: ChatFormat, preference_model: PreferenceModel | None = None
    ) -> None:
        """Load everything; `preference_model` is the input's where not given."""
        self.job, self.settings, self.chat = job, settings, chat
        note_precision(settings.precision, job.device)
        self.roles = Roles(job.input("initial"), settings, job.seed, job.device)
        model, reference = self.roles.policy, self.roles.reference
        self.policy = Policy(model, settings.precision)
        found, longest = prompts_that_fit(job.input("prompts"), chat, "train", settings.max_reply_tokens, model)
        self.num_too_long = found.num_too_long
        try:
            self.stream = PromptStream(found.prompts, settings.harmless_weight, derive_seed(job.seed, _PROMPTS))
        except PromptSetError as error:
            raise JobError(str(error)) from error
        slots = settings.prompts_per_iteration
        engine = DecodeEngine(model, chat.eos_id, slots, longest, settings.precision)
        # All at once: a resumed job must meet the same memory layout as one that was never killed.
        engine.reserve(longest)
        if preference_model is None:
            preference_model = self.roles.preference_model("preference_model", job.input("preference_model"))
        preference_model.precision = settings.precision
        read_reference = Policy(reference, settings.precision)
        self.collector = RolloutCollector(self.policy, read_reference, preference_model, chat, engine, job.device)
        known, sayable = (len(embedding_table(m)) for m in (preference_model.model, model))
        if known < sayable:
            raise JobError(
                f"The preference model knows {known} ids, the policy can say {sayable}. "
                "Train the preference model from this initial policy."
            )
        from_pm = settings.critic == "preference_model"
        trunk = preference_model.model.base_model if from_pm else reference.base_model
        to_train = self.roles.trunk_to_train
        self.critic = Critic(settings.critic, trunk, job.seed, settings.precision, to_train=to_train)
        self.monitor = PolicyMonitor(
            job,
            self.collector,
            settings.watch,
            logp_every=settings.logp_every,
            logp_pairs=settings.logp_pairs,
            load=self.roles.preference_model,
        )
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [parameter for parameter in model.parameters() if parameter.requires_grad]},
                {"params": list(self.critic.head.parameters())},
                *([{"params": self.critic.own_trunk}] if self.critic.own_trunk else []),
            ],
            lr=settings.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPS,
            weight_decay=0.0,
            fused=True,
        )
        self.optimiser_steps = 0
        self.kl_coef = settings.kl_coef
        self.sampler_gap = 0.0  # largest of the run
        self.stopwatch = Stopwatch()
        self.curve: list[dict[str, float]] = []
        self.snapshots = SnapshotKeeper(job.out / "snapshots", settings.snapshots)
        self.good = self._weights()
        self.stopped: str | None = None

    def run(self) -> dict[str, Any]:
        """Train, then measure the final policy once more on the first iteration's prompts.

        1. sample a reply to each prompt of the iteration, score it, read its log-probs;
        2. stop where a wire is tripped (a KL beyond the limit, numbers that are not finite, and those of
           models/watch.py), going back to the last weights with which no wire was;
        3. learn from the rollout for `epochs` passes.
        """
        settings, started_s = self.settings, time.monotonic()
        first = self._resume()
        for iteration in range(first, settings.iterations):
            began_s = time.monotonic()
            self.job.progress(iteration, settings.iterations, "ppo")
            rollout, first_chunks = self._rollout(iteration)
            self.stopped = self._reason_to_stop(rollout, iteration)
            if self.stopped:
                self._log_stop(rollout, iteration)
                restore(self.policy.model, self.good)
                break
            if self.monitor.calm:
                self.good = self._weights()
            summary = self._note(rollout)
            if self.monitor.calm:
                self.snapshots.offer(self.curve[-1], self._write_snapshot)
            watched = self.monitor.metrics(iteration, iteration * settings.prompts_per_iteration)
            with self.stopwatch.phase("learn"):
                learned = self._learn(iteration, rollout, first_chunks)
            if learned is None:
                self.stopped = f"the loss was not finite in iteration {iteration + 1}"
            else:
                self.stopped = self.monitor.learning(learned, iteration)
            self.job.log(
                iteration + 1,
                **summary,
                **watched,
                **(learned or {}),
                **self._speed(rollout, time.monotonic() - began_s),
                episode=(iteration + 1) * settings.prompts_per_iteration,
                **({"stopped": self.stopped} if self.stopped else {}),
            )
            if self.stopped:
                restore(self.policy.model, self.good)
                break
            if (iteration + 1) % settings.checkpoint_every == 0 and iteration + 1 < settings.iterations:
                self._checkpoint(iteration + 1)
        self.job.progress(settings.iterations, settings.iterations, "measure")
        results = self._measure_final()
        self.job.facts["train_seconds"] = round(time.monotonic() - started_s, 3)
        # Said here too: results.json leaves this folder for the store, and with it the end of the run.
        self.job.facts |= {name: results[name] for name in ("samples", "kl_nats", "score_end", "stopped")}
        return results

    # One iteration

    def _rollout(self, iteration: int) -> tuple[Rollout, list[list[ReplyChunk]]]:
        """Replies with everything known about them, and the layout in which the first epoch reads them.

        Old log-probs are read in exactly that layout, so that the ratio of the first minibatch is exactly 1.
        """
        size = self.settings.prompts_per_iteration
        prompts = self.stream.batch(iteration * size, size)
        rollout_seed = derive_seed(self.job.seed, _SAMPLE, iteration)
        collector = self.collector
        collector.engine.sync()
        with self.stopwatch.phase("sample"):
            completions = collector.sample(prompts, self._sampling(rollout_seed, size))
        with self.stopwatch.phase("score"):
            texts = collector.texts(completions)
            scores = collector.scores(prompts, texts)
        width = max(len(completion.ids) for completion in completions)
        chunks = [collector.chunks(completions, rows, width) for rows in self._minibatches(iteration, 0, size)]
        flat = [chunk for minibatch in chunks for chunk in minibatch]
        if iteration == 0:
            # Before it has learned anything the critic expects the mean score of the first replies.
            self.critic.expect(math.fsum(scores) / len(scores))
        with self.stopwatch.phase("read"):
            rollout = collector.measure(prompts, completions, texts, scores, flat, self.critic)
            self._check_sampler(rollout)
        return rollout, chunks

    def _check_sampler(self, rollout: Rollout) -> None:
        """Keep the largest gap between the sampler's log-probs and those read again, and say where it is too large.

        Learning always uses the latter, so that a gap makes replies a little off-policy and nothing else wrong.
        """
        gap = float(rollout.sampler_gaps.max())
        bound = SAMPLER_BOUNDS[self.settings.precision]
        if gap > bound >= self.sampler_gap:
            print(
                f"note: the sampler's log-probs lie up to {gap:.2g} nats from those read again, expected at most "
                f"{bound:g}; learning uses the ones read again.",
                file=sys.stderr,
            )
        self.sampler_gap = max(self.sampler_gap, gap)

    def _sampling(self, seed: int, count: int) -> list[SamplingParams]:
        settings = self.settings
        return [
            SamplingParams(settings.max_reply_tokens, settings.temperature, seed=derive_seed(seed, i))
            for i in range(count)
        ]

    def _minibatches(self, iteration: int, epoch: int, size: int) -> Iterator[list[int]]:
        order = permutation(derive_seed(self.job.seed, _SHUFFLE, iteration, epoch), size).tolist()
        for start in range(0, size, self.settings.minibatch_replies):
            yield order[start : start + self.settings.minibatch_replies]

    def _learn(
        self, iteration: int, rollout: Rollout, first_chunks: Sequence[Sequence[ReplyChunk]]
    ) -> dict[str, float] | None:
        """All epochs over one rollout; means over them, or None where a loss was not finite."""
        settings, mask = self.settings, rollout.response_mask
        token_kl = self._token_kl(rollout, first_chunks)
        rewards = token_rewards(rollout.scores, token_kl, mask, self.kl_coef, settings.kl_placement)
        advantages, returns = advantages_and_returns(
            rewards, rollout.values, mask, settings.discount, settings.gae_lambda
        )
        loss_kl_coef = self.kl_coef if settings.kl_in_loss else 0.0
        if settings.whiten_advantages:
            # A KL term in the loss weighs against the advantages, and is scaled as they are.
            loss_kl_coef *= float(inverse_spread(advantages[mask]))
            advantages[mask] = whiten(advantages[mask])
        kept = (rollout.logps, rollout.ref_logps, rollout.values, advantages, returns)
        old = _OldTokens(*(x.reshape(-1) for x in kept))
        samples = (iteration + 1) * settings.prompts_per_iteration
        rate = scheduled_learning_rate(
            settings.learning_rate,
            samples,
            warmup_samples=settings.warmup_samples,
            halve_every_samples=settings.halve_every_samples or 0,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.param_groups[1]["lr"] = rate * VALUE_HEAD_RATE
        warming = iteration < settings.critic_warmup_iterations
        steps: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            for number, rows in enumerate(self._minibatches(iteration, epoch, len(mask))):
                chunks = (
                    first_chunks[number]
                    if epoch == 0
                    else self.collector.chunks(rollout.completions, rows, mask.shape[1])
                )
                step = self._step(chunks, old, loss_kl_coef, warming)
                if step is None:
                    return None
                steps.append(step)
        explained = 1 - (returns - rollout.values)[mask].var(correction=0) / returns[mask].var(correction=0)
        means = {name: math.fsum(step[name] for step in steps) / len(steps) for name in steps[0]}
        learned = means | {
            "val/ratio_first": steps[0]["val/ratio"],
            "val/ratio_var": statistics.pvariance(step["val/ratio"] for step in steps),
            "val/explained_variance": float(explained),
            "lr": rate,
            "kl_coef": self.kl_coef,
        }
        if settings.kl_target_nats is not None and not warming:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef,
                float(rollout.kl_nats.mean()),
                settings.kl_target_nats,
                len(mask),
                settings.kl_horizon_samples,
            )
        return learned

    @torch.no_grad()
    def _token_kl(self, rollout: Rollout, chunks: Sequence[Sequence[ReplyChunk]]) -> Tensor:
        """(B, R) KL at each token by the estimator of the settings."""
        if self.settings.kl_estimator == "k1":
            return k1_kl(rollout.logps, rollout.ref_logps)
        if self.settings.kl_estimator == "k3":
            return k3_kl(rollout.logps, rollout.ref_logps)
        exact = torch.zeros_like(rollout.logps)
        for chunk in (chunk for minibatch in chunks for chunk in minibatch):
            logits, ref_logits = (p.states_and_logits(chunk)[1] for p in (self.policy, self.collector.reference))
            exact.view(-1)[chunk.places] = full_kl(logits, ref_logits)
        return exact

    def _loss_kl(self, chunk: ReplyChunk, logits: Tensor, logps: Tensor, ref_logps: Tensor) -> Tensor:
        """(N,) the KL term of the loss, with its gradient."""
        if self.settings.kl_estimator == "k3":
            return k3_kl(logps, ref_logps)
        # Read again in every epoch: keeping (N, V) reference logits of a whole rollout would cost more than time.
        with torch.no_grad():
            _, ref_logits = self.collector.reference.states_and_logits(chunk)
        return full_kl(logits, ref_logits)

    def _step(
        self, chunks: Sequence[ReplyChunk], old: _OldTokens, loss_kl_coef: float, warming: bool
    ) -> dict[str, float] | None:
        """One optimiser step on one minibatch; every reply token weighs the same.

        While the critic warms up, the policy gets no gradient, and neither does a trunk that both share.
        """
        settings = self.settings
        count = sum(len(chunk.targets) for chunk in chunks)
        sums = torch.zeros(6, device=self.job.device)
        self.optimiser.zero_grad(set_to_none=True)
        for chunk in chunks:
            with torch.set_grad_enabled(not warming):
                states, logits = self.policy.states_and_logits(chunk)
                logps, entropies = selected_logps(logits, chunk.targets)
            values = self.critic(chunk, states)
            then = old.at(chunk.places)
            policy_loss = policy_losses(logps, then.logps, then.advantages, settings.clip_ratio).sum() / count
            value_loss = value_losses(values, then.values, then.returns, settings.value_clip).sum() / count
            loss = policy_loss + settings.value_coef * value_loss
            if loss_kl_coef and not warming:
                loss = loss + loss_kl_coef * self._loss_kl(chunk, logits, logps, then.ref_logps).sum() / count
            loss.backward()
            with torch.no_grad():
                change = logps.detach() - then.logps
                clipped = clipped_tokens(logps, then.logps, then.advantages, settings.clip_ratio)
                approximate_kl = 0.5 * (change**2).sum() / count
                ratio = change.exp().sum() / count
                sums += torch.stack(
                    [
                        policy_loss,
                        value_loss,
                        approximate_kl,
                        clipped.sum() / count,
                        ratio,
                        entropies.sum() / count,
                    ]
                )
        if not bool(torch.isfinite(sums).all()):
            return None
        # A critic with a trunk of its own is a model of its own: its gradient must not shrink the policy's.
        own = self.critic.own_trunk
        policy, head = (list(model.parameters()) for model in (self.policy.model, self.critic.head))
        norm = torch.nn.utils.clip_grad_norm_(policy if own else policy + head, MAX_GRADIENT_NORM)
        if own:
            torch.nn.utils.clip_grad_norm_(own + head, MAX_GRADIENT_NORM)
        self.optimiser.step()
        self.optimiser_steps += 1
        names = (
            "loss/policy_avg",
            "loss/value_avg",
            "policy/approxkl_avg",
            "policy/clipfrac_avg",
            "val/ratio",
            "policy/entropy_avg",
        )
        return dict(zip(names, sums.tolist(), strict=True)) | {"gradient_norm": float(norm)}

    def _speed(self, rollout: Rollout, seconds: float) -> dict[str, float]:
        """Speed of one iteration, under names that TRL's users know where it has them."""
        parts = self.stopwatch.lap()
        tokens = int(rollout.reply_tokens.sum())
        read = tokens + sum(len(completion.prompt_ids) for completion in rollout.completions)
        numbers = {
            "eps": round(len(rollout.completions) / seconds, 1),
            "perf/tokens_per_s": round(tokens / seconds, 1),
            "perf/learn_tokens_per_s": round(self.settings.epochs * read / parts["learn"], 1),
            **{f"perf/{name}_s": round(parts[name], 4) for name in ("sample", "score", "read", "learn")},
        }
        peak = peak_flops(self.job.device, self.settings.precision)
        if peak is not None:
            operations = learning_operations(self.policy.model)
            if self.critic.trunk is not None:
                operations += learning_operations(self.critic.trunk)
            numbers["perf/mfu"] = operations * self.settings.epochs * read / parts["learn"] / peak
            self.job.facts["peak_flops"] = peak
        return numbers

    # Watching and stopping

    def _reason_to_stop(self, rollout: Rollout, iteration: int, *, last: bool = False) -> str | None:
        kl = float(rollout.kl_nats.mean())
        if not math.isfinite(kl) or not bool(torch.isfinite(rollout.scores).all()):
            return f"log-probs or scores were not finite in iteration {iteration + 1}"
        limit = self.settings.max_kl_nats
        if limit is not None and kl > limit:
            return f"KL {kl:.3g} nats was above max_kl_nats {limit:g} in iteration {iteration + 1}"
        return self.monitor.rollout(rollout, iteration, last=last)

    def _log_stop(self, rollout: Rollout, iteration: int) -> None:
        """The line of a rollout that is not learned from: its numbers, and why training stops there."""
        numbers = self._summary(rollout)
        if math.isfinite(numbers["objective/kl"]) and math.isfinite(numbers["objective/scores"]):
            numbers |= self.monitor.watch.metrics(self.monitor.look(rollout))
        self.job.log(iteration + 1, **numbers, stopped=self.stopped)

    def _summary(self, rollout: Rollout) -> dict[str, float]:
        """Means over the replies of a rollout, under the names that TRL's users know."""
        kl, score = float(rollout.kl_nats.mean()), float(rollout.scores.mean())
        numbers = {
            "objective/kl": kl,
            "objective/scores": score,
            "objective/non_score_reward": -self.kl_coef * kl,
            "objective/rlhf_reward": score - self.kl_coef * kl,
            "objective/entropy": float(rollout.entropies[rollout.response_mask].mean()),
            "reply_tokens": float(rollout.reply_tokens.float().mean()),
            "truncated": sum(rollout.truncated) / len(rollout.truncated),
            "sampler/logratio_max": float(rollout.sampler_gaps.max()),
            "sampler/logratio_mean": float(rollout.sampler_gaps.mean()),
            "val/num_eos_tokens": len(rollout.truncated) - sum(rollout.truncated),
        }
        for kind in KINDS:
            rows = [i for i, prompt in enumerate(rollout.prompts) if prompt.kind == kind]
            if rows:
                numbers[f"objective/scores_{kind}"] = float(rollout.scores[rows].mean())
        return numbers

    def _note(self, rollout: Rollout) -> dict[str, float]:
        summary = self._summary(rollout)
        self.curve.append(
            {
                "samples": len(self.curve) * self.settings.prompts_per_iteration,
                "kl_nats": summary["objective/kl"],
                "score": summary["objective/scores"],
                # The one this rollout is learned from with: it may follow the KL.
                "kl_coef": self.kl_coef,
                "entropy": summary["objective/entropy"],
                "reply_tokens": summary["reply_tokens"],
            }
            | self.monitor.curve_point()
        )
        return summary

    def _measure_final(self) -> dict[str, Any]:
        """Results: the final policy on the first iteration's prompts, with fresh random numbers."""
        size = self.settings.prompts_per_iteration
        prompts = self.stream.batch(0, size)
        collector = self.collector
        collector.engine.sync()
        completions = collector.sample(prompts, self._sampling(derive_seed(self.job.seed, _MEASURE), size))
        texts = collector.texts(completions)
        rollout = collector.measure(prompts, completions, texts, collector.scores(prompts, texts))
        if self.stopped:
            self.monitor.look(rollout)
        else:
            self.stopped = self._reason_to_stop(rollout, self.settings.iterations, last=True)
            if self.stopped:
                self._log_stop(rollout, self.settings.iterations)
                restore(self.policy.model, self.good)
                return self._measure_final()
        summary = self._summary(rollout)
        return (
            {
                "optimiser_steps": self.optimiser_steps,
                "samples": self.settings.prompts_per_iteration * len(self.curve),
                "kl_nats": summary["objective/kl"],
                "score_start": self.curve[0]["score"] if self.curve else None,
                "score_end": summary["objective/scores"],
                "entropy": summary["objective/entropy"],
                "reply_tokens": summary["reply_tokens"],
                "truncated": summary["truncated"],
                "stopped": self.stopped,
                "kl_coef_end": self.kl_coef,
                "sampler_logratio_max": self.sampler_gap,
                "settings": asdict(self.settings),
                "choices": choices(self.settings),
                "prompts_too_long": self.num_too_long,
                "harmless_share": self.stream.harmless_share,
                "curve": self.curve,
            }
            | self.roles.results()
            | self.monitor.results(self.settings.prompts_per_iteration * len(self.curve))
        )

    def _write_snapshot(self, folder: Path, point: Mapping[str, Any]) -> None:
        """The policy as the newest point of the curve measured it."""
        card = model_card("Policy snapshot", CARD, point, tags=("ppo",))
        self.roles.save_policy(folder, self.chat, card)

    # Resume

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in learned_state(self.policy.model).items()}

    def _checkpoint(self, iteration: int) -> None:
        self.job.save_checkpoint(
            iteration,
            {
                "policy": learned_state(self.policy.model),
                "critic": learned_state(self.critic),
                "optimiser": self.optimiser.state_dict(),
                "optimiser_steps": self.optimiser_steps,
                "kl_coef": self.kl_coef,
                "sampler_gap": self.sampler_gap,
                "good": self.good,
                "curve": self.curve,
                "snapshots": self.snapshots.state_dict(),
                "monitor": self.monitor.state,
            },
        )
        self.snapshots.settle()

    def _resume(self) -> int:
        saved = self.job.load_checkpoint()
        if saved is None:
            self.snapshots.settle()
            return 0
        iteration, state = saved
        self.snapshots.load_state_dict(state["snapshots"])
        restore(self.policy.model, state["policy"])
        restore(self.critic, state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.optimiser_steps, self.good, self.curve = state["optimiser_steps"], state["good"], state["curve"]
        self.kl_coef, self.sampler_gap = state["kl_coef"], state["sampler_gap"]
        self.monitor.restore(state["monitor"])
        return iteration


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


if __name__ == "__main__":
    main(NAME, run)
