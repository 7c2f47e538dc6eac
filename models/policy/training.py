"""The loop of PPO: sample, score, learn, measure, keep what a restart needs.

`models/jobs/train_policy.py` is the process around it. Sampling is in `rollout.py`, learning in `learning.py`, the
maths in `ppo.py`, the tripwires in `watch.py`, settings in `settings.py`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from models.backbone.adapters import learned_state, restore
from models.backbone.precision import multiplying_in, note_precision
from models.backbone.recomputation import NoSuchLayers, recompute_activations
from models.backbone.throughput import Stopwatch, learning_operations, peak_flops
from models.chat.format import ChatFormat
from models.model_folders.loading import embedding_table
from models.model_folders.saving import model_card
from models.policy.critic import Critic
from models.policy.inputs import prompts_that_fit
from models.policy.learning import LearnerState, PolicyLearner
from models.policy.model import Policy
from models.policy.monitor import MonitorState, PolicyMonitor
from models.policy.prompts import KINDS, Prompt, PromptSetError, PromptStream
from models.policy.recovery import LastGood, Tripped, smaller_step_helps
from models.policy.reply_chunks import ReplyChunk
from models.policy.results import CurvePoint, PPOResult, Recovery
from models.policy.roles import Roles
from models.policy.rollout import SAMPLER_BOUNDS, Rollout, RolloutCollector
from models.policy.settings import PPOSettings, choices
from models.policy.snapshots import SnapshotKeeper, SnapshotsState
from models.preference.model import PreferenceModel
from models.runtime.checkpoints import Unchanging
from models.runtime.job import Job, JobError
from models.runtime.random_numbers import derive_seed, permutation
from models.runtime.results import part_to_json
from models.sampling.engine import DecodeEngine, SamplingParams

# Purposes of random numbers, so that no two of them share a stream.
_SAMPLE, _SHUFFLE, _PROMPTS, _MEASURE = range(4)
CARD = (
    "A policy trained with PPO against a preference model, starting from the initial policy. "
    "`kl_nats` is its distance from the initial policy per reply, on training prompts."
)


class Checkpoint(LearnerState):
    """What a run goes on from."""

    policy: Mapping[str, Tensor]
    critic: Mapping[str, Tensor]
    """Empty where the advantages need none."""
    sampler_gap: float
    good: Any
    """Fields of `LastGood`; of before there were recoveries, the weights of the policy alone."""
    kept: list[int]
    """Iterations that are in the weights; not there of before there were recoveries, and neither are `recoveries`."""
    recoveries: list[Mapping[str, Any]]
    """Fields of `Recovery`."""
    curve: list[Mapping[str, Any]]
    """Fields of `CurvePoint`."""
    snapshots: SnapshotsState
    monitor: MonitorState


class PolicyTraining:
    """The PPO loop: sample, score, learn; resumable after any iteration that was checkpointed."""

    def __init__(
        self,
        job: Job,
        settings: PPOSettings,
        chat: ChatFormat,
        preference_model: PreferenceModel | None = None,
        *,
        before_loading: Callable[[int], None] = lambda longest: None,
    ) -> None:
        """Load everything.

        Args:
            preference_model: the input's where not given.
            before_loading: called with the tokens of the longest prompt with its reply, when no model is loaded yet.
        """
        self.job, self.settings, self.chat = job, settings, chat
        note_precision(settings.precision, job.device)
        judges = [job.input("preference_model")] if preference_model is None else []
        found, longest = prompts_that_fit(job.input("prompts"), chat, "train", settings, [job.input("initial")], judges)
        self.num_too_long, self.prompts_refused = found.num_too_long, found.refused
        before_loading(longest)
        self.roles = Roles(job.input("initial"), settings, job.seed, job.device)
        model, reference = self.roles.policy, self.roles.reference
        self.policy = Policy(model, settings.precision, settings.logits_tokens)
        if preference_model is None:
            preference_model = self.roles.preference_model("preference_model", job.input("preference_model"))
        preference_model.precision = settings.precision
        try:
            self.stream = PromptStream(found.prompts, settings.harmless_weight, derive_seed(job.seed, _PROMPTS))
        except PromptSetError as error:
            raise JobError(str(error)) from error
        slots = settings.replies_per_iteration
        engine = DecodeEngine(
            model, chat.stop_ids, slots, longest, settings.precision, forward_tokens=settings.forward_tokens
        )
        # All at once: a resumed job must meet the same memory layout as one that was never killed.
        engine.reserve(longest)
        read_reference = Policy(reference, settings.precision, settings.logits_tokens)
        self.collector = RolloutCollector(
            self.policy, read_reference, preference_model, chat, engine, job.device, settings.forward_tokens
        )
        known, sayable = (len(embedding_table(m)) for m in (preference_model.model, model))
        if known < sayable:
            raise JobError(
                f"The preference model knows {known} ids, the policy can say {sayable}. "
                "Train the preference model from this initial policy."
            )
        self.critic = None if settings.advantage == "rloo" else self._new_critic(preference_model)
        if settings.recompute_activations:
            self._recompute()
        halved = settings.frozen_precision == "bfloat16"
        if halved:
            self.roles.hold_in_bfloat16("reference", read_reference)
            self.roles.hold_in_bfloat16("preference_model", preference_model)
        self.monitor = PolicyMonitor(
            job,
            self.collector,
            settings.watch,
            logp_every=settings.logp_every,
            logp_pairs=settings.logp_pairs,
            load=self.roles.preference_model,
        )
        if halved and self.monitor.watcher is not None:
            self.roles.hold_in_bfloat16("watcher", self.monitor.watcher)
        self.learner = PolicyLearner(job, settings, self.policy, self.critic, self.collector, self._minibatches)
        self.sampler_gap = 0.0  # largest of the run
        self.stopwatch = Stopwatch()
        self.curve: list[CurvePoint] = []
        self.snapshots = SnapshotKeeper(job.out / "snapshots", settings.snapshots)
        self.kept: list[int] = []  # iterations whose learning is in the weights
        self.recoveries: list[Recovery] = []
        self._good: LastGood | None = None
        self.stopped: str | None = None

    def _new_critic(self, preference_model: PreferenceModel) -> Critic:
        kind = self.settings.critic
        trunk = (preference_model.model if kind == "preference_model" else self.roles.reference).base_model
        to_train = self.roles.trunk_to_train
        return Critic(kind, trunk, self.job.seed, self.settings.precision, to_train=to_train)

    def _recompute(self) -> None:
        trunks = [self.policy.model.base_model, self.critic.trunk if self.critic else None]
        try:
            for trunk in filter(None, trunks):
                recompute_activations(trunk)
        except NoSuchLayers as error:
            raise JobError(str(error)) from error

    def run(self) -> PPOResult:
        """Train, then measure the final policy once more on the first iteration's prompts.

        1. sample a reply to each prompt of the iteration, score it, read its log-probs;
        2. where a wire is tripped (a KL beyond the limit, numbers that are not finite, and those of
           models/policy/watch.py), go back to the last weights with which no wire was, and on with a smaller step, or
           stop (models/policy/recovery.py);
        3. learn from the rollout for `epochs` passes.
        """
        with multiplying_in(self.settings.precision, self.job.device):
            return self._run()

    def _run(self) -> PPOResult:
        settings, started_s = self.settings, time.monotonic()
        for iteration in range(self._resume(), settings.iterations):
            self.job.progress(iteration, settings.iterations, "ppo")
            self._iterate(iteration)
            if self.stopped:
                break
            every, share = settings.checkpoint_every, settings.checkpoint_time_share
            if self.job.checkpoint_due(iteration + 1, settings.iterations, every, share):
                self._checkpoint(iteration + 1)
        self.job.progress(settings.iterations, settings.iterations, "measure")
        results = self._measure_final()
        self.job.facts["train_seconds"] = round(time.monotonic() - started_s, 3)
        # Said here too: results.json leaves this folder for the store, and with it the end of the run.
        self.job.facts |= {name: getattr(results, name) for name in ("samples", "kl_nats", "score_end", "stopped")}
        return results

    # One iteration

    def _iterate(self, iteration: int) -> None:
        """Learn from one more rollout, unless a wire is tripped."""
        began_s = time.monotonic()
        rollout, first_chunks = self._rollout(iteration)
        tripped = self._tripped_by(rollout, iteration)
        if tripped:
            self._log_given_up(rollout, iteration, tripped)
            return
        if self.monitor.calm:
            self._keep_as_good()
        summary = self._note(rollout)
        if self.monitor.calm:
            self.snapshots.offer(self.curve[-1], self._write_snapshot)
        watched = self.monitor.metrics(iteration, self._samples)
        with self.stopwatch.phase("learn"):
            learned = self.learner.learn(iteration, rollout, first_chunks)
        self.kept.append(iteration + 1)
        tripped = self._tripped_by_learning(learned, iteration)
        self.job.log(
            iteration + 1,
            **summary,
            **watched,
            **(learned or {}),
            **self._speed(rollout, time.monotonic() - began_s),
            episode=(iteration + 1) * self.settings.replies_per_iteration,
            **(self._answer(tripped, iteration) if tripped else {}),
        )

    @property
    def _samples(self) -> int:
        """Replies whose learning is in the weights."""
        return len(self.kept) * self.settings.replies_per_iteration

    def _prompts(self, iteration: int) -> list[Prompt]:
        """The prompt of each reply of a rollout; the replies to one stand one after another."""
        size = self.settings.prompts_per_iteration
        prompts = self.stream.batch(iteration * size, size)
        return [prompt for prompt in prompts for _ in range(self.settings.samples_per_prompt)]

    def _rollout(self, iteration: int) -> tuple[Rollout, list[list[ReplyChunk]]]:
        """Replies with everything known about them, and the layout in which the first epoch reads them.

        Old log-probs are read in exactly that layout, so that the ratio of the first minibatch is exactly 1.
        """
        size, prompts = self.settings.replies_per_iteration, self._prompts(iteration)
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
        if iteration == 0 and self.critic is not None:
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
            if self.critic is not None and self.critic.trunk is not None:
                operations += learning_operations(self.critic.trunk)
            numbers["perf/mfu"] = operations * self.settings.epochs * read / parts["learn"] / peak
            self.job.facts["peak_flops"] = peak
        return numbers

    # Watching, going back, stopping

    def _tripped_by(self, rollout: Rollout, iteration: int, *, last: bool = False) -> Tripped | None:
        kl = float(rollout.kl_nats.mean())
        if not math.isfinite(kl) or not bool(torch.isfinite(rollout.scores).all()):
            return Tripped("not_finite", f"log-probs or scores were not finite in iteration {iteration + 1}")
        limit = self.settings.max_kl_nats
        if limit is not None and kl > limit:
            found = f"KL {kl:.3g} nats was above max_kl_nats {limit:g} in iteration {iteration + 1}"
            return Tripped("max_kl_nats", found)
        return self._tripped(self.monitor.rollout(rollout, iteration, last=last))

    def _tripped_by_learning(self, learned: dict[str, float] | None, iteration: int) -> Tripped | None:
        if learned is None:
            return Tripped("not_finite", f"the loss or its gradient was not finite in iteration {iteration + 1}")
        return self._tripped(self.monitor.learning(learned, iteration))

    def _tripped(self, found: str | None) -> Tripped | None:
        wire = self.monitor.watch.stopped_by
        return None if found is None or wire is None else Tripped(wire, found)

    def _log_given_up(self, rollout: Rollout, iteration: int, tripped: Tripped) -> None:
        """The line of a rollout that is not learned from: its numbers, and what becomes of the run."""
        numbers = self._summary(rollout)
        if math.isfinite(numbers["objective/kl"]) and math.isfinite(numbers["objective/scores"]):
            numbers |= self.monitor.watch.metrics(self.monitor.look(rollout))
        self.job.log(iteration + 1, **numbers, **self._answer(tripped, iteration))

    def _answer(self, tripped: Tripped, iteration: int) -> dict[str, str]:
        """Go back to the last good weights, and on from there where that may help; what metrics.jsonl says of it."""
        if self._may_recover(tripped, iteration):
            self._recover(tripped, iteration)
            return {"recovered": tripped.found}
        self.stopped = tripped.found
        del self.kept[self.good.rounds :]
        restore(self.policy.model, self.good.policy)
        return {"stopped": tripped.found}

    def _may_recover(self, tripped: Tripped, iteration: int) -> bool:
        """Whether a smaller step from the last good weights is to be tried: not where nothing was learned since."""
        good, watch = self.good, self.settings.watch
        return (
            len(self.recoveries) < watch.max_recoveries
            and iteration + 1 < self.settings.iterations
            and good.learner is not None
            and len(self.kept) > good.rounds
            and smaller_step_helps(tripped.wire, at_start=good.rounds <= self.settings.critic_warmup_iterations)
        )

    def _recover(self, tripped: Tripped, iteration: int) -> None:
        factor = self.learner.rate_factor * self.settings.watch.recovery_rate
        self.good.bring_back(self.policy.model, self.critic, self.learner)
        self.learner.rate_factor = factor
        del self.kept[self.good.rounds :]
        # The point of the good weights stays: the next rollout is written by the same ones.
        del self.curve[self.good.rounds + 1 :]
        self.monitor.recover(self._samples)
        back_to = self.kept[-1] if self.kept else 0
        rate = self.settings.learning_rate * factor
        self.recoveries.append(Recovery(iteration + 1, tripped.wire, tripped.found, back_to, rate))

    def _summary(self, rollout: Rollout) -> dict[str, float]:
        """Means over the replies of a rollout, under the names that TRL's users know."""
        kl, score = float(rollout.kl_nats.mean()), float(rollout.scores.mean())
        truncated = sum(rollout.truncated) / len(rollout.truncated)
        taken_off = self.learner.kl_coef * kl + self.settings.cut_off_penalty * truncated
        numbers = {
            "objective/kl": kl,
            "objective/scores": score,
            "objective/non_score_reward": -taken_off,
            "objective/rlhf_reward": score - taken_off,
            "objective/entropy": float(rollout.entropies[rollout.response_mask].mean()),
            "reply_tokens": float(rollout.reply_tokens.float().mean()),
            "truncated": truncated,
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
        if len(self.curve) > len(self.kept):
            # After a recovery: these weights have their point already.
            return summary
        self.curve.append(
            CurvePoint(
                samples=self._samples,
                kl_nats=summary["objective/kl"],
                score=summary["objective/scores"],
                kl_coef=self.learner.kl_coef,
                entropy=summary["objective/entropy"],
                reply_tokens=summary["reply_tokens"],
                **self.monitor.curve_point(),
            )
        )
        return summary

    def _measure_final(self) -> PPOResult:
        """Results: the final policy on the first iteration's prompts, with fresh random numbers."""
        size, prompts = self.settings.replies_per_iteration, self._prompts(0)
        collector = self.collector
        collector.engine.sync()
        completions = collector.sample(prompts, self._sampling(derive_seed(self.job.seed, _MEASURE), size))
        texts = collector.texts(completions)
        rollout = collector.measure(prompts, completions, texts, collector.scores(prompts, texts))
        if self.stopped:
            self.monitor.look(rollout)
        else:
            tripped = self._tripped_by(rollout, self.settings.iterations, last=True)
            if tripped:
                self._log_given_up(rollout, self.settings.iterations, tripped)
                return self._measure_final()
        summary = self._summary(rollout)
        samples = self.settings.replies_per_iteration * len(self.curve)
        return PPOResult(
            optimiser_steps=self.learner.optimiser_steps,
            samples=samples,
            kl_nats=summary["objective/kl"],
            score_start=self.curve[0].score if self.curve else None,
            score_end=summary["objective/scores"],
            entropy=summary["objective/entropy"],
            reply_tokens=summary["reply_tokens"],
            truncated=summary["truncated"],
            stopped=self.stopped,
            kept_iteration=(self.kept[-1] if self.kept else 0) if self.stopped else None,
            recoveries=tuple(self.recoveries) or None,
            kl_coef_end=self.learner.kl_coef,
            sampler_logratio_max=self.sampler_gap,
            settings=asdict(self.settings),
            choices=choices(self.settings),
            prompts_too_long=self.num_too_long,
            prompts_refused=self.prompts_refused,
            harmless_share=self.stream.harmless_share,
            curve=tuple(self.curve),
            roles=self._roles_held(),
            trained_parameters=self.roles.trained_parameters,
            watch=self.monitor.watched(),
            logp_accuracy=self.monitor.logp_accuracy(samples),
            snapshots=self.snapshots.listed() if self.settings.snapshots else None,
        )

    def _roles_held(self) -> dict[str, str] | None:
        held = self.roles.how_held
        return held if held is None or self.critic else {role: how for role, how in held.items() if role != "critic"}

    def _write_snapshot(self, folder: Path, point: CurvePoint) -> None:
        """The policy as the newest point of the curve measured it."""
        card = model_card("Policy snapshot", CARD, part_to_json(point), tags=("ppo",))
        self.roles.save_policy(folder, self.chat, card)

    # Resume

    def _keep_as_good(self) -> None:
        """Take the weights as they are for the last good ones, which are given up first: they are as large."""
        if self._good is not None:
            # A checkpoint that is being written still holds them.
            self.job.wait_for_checkpoint()
            self._good = None
        self._good = self._good_now()

    def _good_now(self) -> LastGood:
        whole = self.settings.watch.max_recoveries > len(self.recoveries)
        return LastGood.now(self.policy.model, self.critic, self.learner, len(self.kept), whole=whole)

    @property
    def good(self) -> LastGood:
        """The last good weights; there are some from the start of `run` on."""
        assert self._good is not None
        return self._good

    def _checkpoint(self, iteration: int) -> None:
        state: Checkpoint = {
            "policy": learned_state(self.policy.model),
            "critic": {} if self.critic is None else learned_state(self.critic),
            **self.learner.state,
            "sampler_gap": self.sampler_gap,
            # Each is a copy of its own and never written to.
            "good": Unchanging(vars(self.good)),
            "kept": self.kept,
            "recoveries": [part_to_json(recovery) for recovery in self.recoveries],
            "curve": [part_to_json(point) for point in self.curve],
            "snapshots": self.snapshots.state_dict(),
            "monitor": self.monitor.state,
        }
        self.job.save_checkpoint(iteration, state)
        self.snapshots.checkpointed()

    def _resume(self) -> int:
        saved = self.job.load_checkpoint()
        if saved is None:
            self.snapshots.start_over()
            self._keep_as_good()
            return 0
        iteration, state = saved[0], cast(Checkpoint, saved[1])
        self.snapshots.load_state_dict(state["snapshots"])
        restore(self.policy.model, state["policy"])
        if self.critic is not None:
            restore(self.critic, state["critic"])
        self.learner.restore(state)
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        if "kept" in state:
            self._good, self.kept = LastGood(**state["good"]), state["kept"]
            self.recoveries = [Recovery(**recovery) for recovery in state["recoveries"]]
        else:
            # A checkpoint of before there were recoveries: the weights alone.
            self.kept = list(range(1, iteration + 1))
            self._good = LastGood(state["good"], rounds=iteration - 1)
        self.sampler_gap = state["sampler_gap"]
        self.monitor.restore(state["monitor"])
        return iteration
