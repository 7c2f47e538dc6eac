"""Job: judge a policy on prompts by the preference model's score and by its distance from the initial policy.

Inputs: `policy`, `initial`, `preference_model`, `prompts`, and optionally `watcher`, a second preference model that
scores the same replies. What it publishes is in models/policy/results.py.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from models.backbone.precision import multiplying_in, note_precision
from models.chat.format import ChatFormat
from models.memory.needs import config_of, judges_of, needs_of_evaluation
from models.memory.room import check_room
from models.model_folders.loading import load_causal_lm
from models.policy.inputs import load_preference_model, prompts_that_fit
from models.policy.model import Policy
from models.policy.ppo import best_of_n_kl
from models.policy.prompts import KINDS, Prompt
from models.policy.results import BestOfPoint, Evaluation, EvaluationPart, JudgedReply, OpenInterval
from models.policy.rollout import RolloutCollector
from models.policy.settings import EvaluationSettings
from models.preference.model import PreferenceModel
from models.runtime.job import Job, main
from models.runtime.random_numbers import derive_seed
from models.runtime.results import part_to_json, result_to_json
from models.runtime.settings import settings_from
from models.sampling.engine import Completion, DecodeEngine, SamplingParams
from models.statistics.intervals import mean_interval_json
from models.statistics.kl_law import expected_best_of
from models.statistics.reply_signals import collapse_signals, repeated_ngrams

NAME = "evaluate"
# Replies decoded together. More fill the processor better, until the cache of keys outgrows memory.
SLOTS = 128
# Prompts sampled, scored and measured before the next ones, so that memory does not grow with their number.
BATCH_REPLIES = 512


def run(job: Job) -> None:
    """Sample, score, measure and publish replies.jsonl with results.json.

    Raises:
        JobError: the inputs don't belong together, or there is no prompt to judge on.
    """
    settings = settings_from(EvaluationSettings, job.settings)
    chat = ChatFormat.load(job.input("initial"))
    initial = job.input("initial")
    policies, judge_folder = [job.input("policy"), initial], job.input("preference_model")
    found, longest = prompts_that_fit(job.input("prompts"), chat, settings.split, settings, policies, [judge_folder])
    prompts = found.prompts[: settings.num_prompts]
    slots = min(SLOTS, len(prompts) * settings.best_of)
    judges = judges_of(judge_folder, job.inputs.get("watcher"), shared=False)
    of, beside = (config_of(folder) for folder in policies)
    needs = functools.partial(needs_of_evaluation, of, beside, judges, settings, job.device.type, slots, longest)
    check_room(job, needs, [*policies, judge_folder])
    policy, reference = (load_causal_lm(folder, device=job.device) for folder in policies)
    preference_model = load_preference_model(judge_folder, initial, job.device)
    precision = settings.precision
    note_precision(precision, job.device)
    engine = DecodeEngine(policy, chat.stop_ids, slots, longest, precision, forward_tokens=settings.forward_tokens)
    engine.reserve(longest)
    preference_model.precision = precision
    judged, compared = (Policy(model, precision, settings.logits_tokens) for model in (policy, reference))
    collector = RolloutCollector(judged, compared, preference_model, chat, engine, job.device, settings.forward_tokens)
    watcher = None
    if "watcher" in job.inputs:
        watcher = load_preference_model(job.input("watcher"), initial, job.device)
        watcher.chunk_tokens, watcher.precision = preference_model.chunk_tokens, precision
    records: list[JudgedReply] = []
    batch = max(1, BATCH_REPLIES // settings.best_of)
    for start in range(0, len(prompts), batch):
        job.progress(start, len(prompts), "evaluate")
        with multiplying_in(precision, job.device):
            records.extend(judge(collector, prompts[start : start + batch], start, settings, job.seed, watcher))
    job.progress(len(prompts), len(prompts), "evaluate")
    records = in_dialogues(records)
    result = Evaluation(
        **vars(_means(records)),
        best_of=settings.best_of,
        by_kind=means_by_kind(records),
        prompts_too_long=found.num_too_long,
        prompts_refused=found.refused,
        split=settings.split,
        best_of_points=best_of_points(records, settings.best_of_points) if settings.best_of_points else None,
    )

    def write(folder: Path) -> None:
        with (folder / "replies.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(part_to_json(record), ensure_ascii=False) + "\n" for record in records)

    job.publish(write, result_to_json(result))


def judge(
    collector: RolloutCollector,
    prompts: Sequence[Prompt],
    first: int,
    settings: EvaluationSettings,
    seed: int,
    watcher: PreferenceModel | None = None,
) -> list[JudgedReply]:
    """One record per prompt. `first` is the number of the first prompt, from which its random numbers come."""
    n = settings.best_of
    repeated = [prompt for prompt in prompts for _ in range(n)]
    params = [
        SamplingParams(settings.max_reply_tokens, settings.temperature, seed=derive_seed(seed, first + i // n, i % n))
        for i in range(len(repeated))
    ]
    completions = collector.sample(repeated, params)
    texts = collector.texts(completions)
    scores = collector.scores(repeated, texts)
    # The first of equals, so that the choice does not depend on anything else.
    best = [max(range(i, i + n), key=lambda k: (scores[k], -k)) for i in range(0, len(repeated), n)]
    chosen: list[Completion] = [completions[i] for i in best]
    rollout = collector.measure(prompts, chosen, [texts[i] for i in best], [scores[i] for i in best])
    # Choosing among n adds its own distance to that of the policy from which the n came.
    kls = [kl + best_of_n_kl(n) for kl in rollout.kl_nats.tolist()]
    entropies = rollout.entropies.sum(dim=1) / rollout.reply_tokens
    columns = zip(
        prompts, rollout.texts, rollout.scores.tolist(), kls, rollout.completions, entropies.tolist(), strict=True
    )
    watched = collector.scores(prompts, rollout.texts, watcher) if watcher is not None else [None] * len(prompts)
    return [
        JudgedReply(
            prompt_id=prompt.id,
            kind=prompt.kind,
            messages=list(prompt.messages),
            reply=text,
            score=score,
            kl_nats=kl,
            reply_tokens=len(completion.ids),
            truncated=completion.finished == "length",
            entropy=entropy,
            repeated_ngrams=repeated_ngrams(completion.ids),
            scores=scores[i * n : (i + 1) * n] if settings.best_of_points else None,
            watcher_score=watched[i],
        )
        for i, (prompt, text, score, kl, completion, entropy) in enumerate(columns)
    ]


def in_dialogues(records: Sequence[JudgedReply]) -> list[JudgedReply]:
    """The records with the numbers of their dialogues, counted by first appearance.

    A dialogue is known by how it opens, as where held-out dialogues are chosen: its turns are prompts of their own.
    """
    numbers: dict[Hashable, int] = {}
    return [
        record if record.cluster is None else replace(record, dialogue=numbers.setdefault(record.cluster, len(numbers)))
        for record in records
    ]


def best_of_points(records: Sequence[JudgedReply], ks: Sequence[int]) -> tuple[BestOfPoint, ...]:
    """For each k the expected score of the best of k, from the `scores` of all n replies to each prompt.

    The estimate is unbiased for every k up to n, and its interval is over prompts, by dialogues. `kl_nats` is
    log k − (k − 1)/k, the distance of the best of k to the policy that wrote the k: where that is the initial policy,
    the whole distance.
    """
    points = []
    for k in ks:
        score, ci = _interval(records, [expected_best_of(record.scores or (), k) for record in records])
        points.append(BestOfPoint(k, best_of_n_kl(k), score, ci, num_prompts=len(records)))
    return tuple(points)


def means_by_kind(records: Sequence[JudgedReply]) -> dict[str, EvaluationPart]:
    """Means over the prompts of each kind of which there are any."""
    by_kind = {kind: [record for record in records if record.kind == kind] for kind in KINDS}
    return {kind: _means(mine) for kind, mine in by_kind.items() if mine}


def _means(records: Sequence[JudgedReply]) -> EvaluationPart:
    score, score_ci = _interval(records, [record.score for record in records])
    kl, kl_ci = _interval(records, [record.kl_nats for record in records])
    tokens = sum(record.reply_tokens for record in records)
    # All of them or none: a watcher scores every reply.
    watched = [record.watcher_score for record in records if record.watcher_score is not None]
    watcher, watcher_ci = _interval(records, watched) if watched else (None, None)
    return EvaluationPart(
        pm_score=score,
        pm_score_ci=score_ci,
        kl_nats=kl,
        kl_ci=kl_ci,
        num_prompts=len(records),
        reply_tokens=tokens / len(records),
        truncated=sum(record.truncated for record in records) / len(records),
        entropy=math.fsum(record.entropy * record.reply_tokens for record in records) / tokens,
        collapse=collapse_signals([record.reply for record in records], [record.repeated_ngrams for record in records]),
        watcher_score=watcher,
        watcher_score_ci=watcher_ci,
    )


def _interval(records: Sequence[JudgedReply], values: Sequence[float]) -> tuple[float, OpenInterval]:
    """The mean of one value per record, and its interval by dialogues."""
    mean, (low, high) = mean_interval_json(values, clusters=[record.cluster for record in records])
    return mean, (low, high)


if __name__ == "__main__":
    main(NAME, run)
