"""Job: judge a policy on prompts by the preference model's score and by its distance from the initial policy.

Inputs: `policy`, `initial`, `preference_model`, `prompts`, and optionally `base_evaluation`, an earlier evaluation
(of the initial policy, say) on the same prompts, from which a paired gain is reckoned, and `watcher`, a second
preference model that scores the same replies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.policy.inputs import load_preference_model, prompts_that_fit
from models.policy.model import Policy
from models.policy.ppo import best_of_n_kl
from models.policy.prompts import KINDS, Prompt
from models.policy.rollout import RolloutCollector
from models.policy.settings import EvaluationSettings
from models.preference.model import PreferenceModel
from models.runtime.job import Job, JobError, main
from models.runtime.random_numbers import derive_seed
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
    policy = load_causal_lm(job.input("policy"), device=job.device)
    reference = load_causal_lm(initial, device=job.device)
    found, longest = prompts_that_fit(
        job.input("prompts"), chat, settings.split, settings.max_reply_tokens, policy, reference
    )
    prompts = found.prompts[: settings.num_prompts]
    engine = DecodeEngine(policy, chat.eos_id, min(SLOTS, len(prompts) * settings.best_of), longest)
    engine.reserve(longest)
    preference_model = load_preference_model(job.input("preference_model"), initial, job.device)
    collector = RolloutCollector(Policy(policy), Policy(reference), preference_model, chat, engine, job.device)
    watcher = None
    if "watcher" in job.inputs:
        watcher = load_preference_model(job.input("watcher"), initial, job.device)
    records: list[dict[str, Any]] = []
    batch = max(1, BATCH_REPLIES // settings.best_of)
    for start in range(0, len(prompts), batch):
        job.progress(start, len(prompts), "evaluate")
        records.extend(judge(collector, prompts[start : start + batch], start, settings, job.seed, watcher))
    job.progress(len(prompts), len(prompts), "evaluate")
    results = summary(records, settings.best_of) | {"prompts_too_long": found.num_too_long, "split": settings.split}
    if settings.best_of_points:
        results["best_of_points"] = best_of_points(records, settings.best_of_points)
    if "base_evaluation" in job.inputs:
        results["gain"] = paired_gain(records, job.input("base_evaluation"))

    def write(folder: Path) -> None:
        with (folder / "replies.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    job.publish(write, results)


def judge(
    collector: RolloutCollector,
    prompts: Sequence[Prompt],
    first: int,
    settings: EvaluationSettings,
    seed: int,
    watcher: PreferenceModel | None = None,
) -> list[dict[str, Any]]:
    """One record per prompt. `first` is the number of the first prompt, from which its random numbers come."""
    n = settings.best_of
    asked = [prompt for prompt in prompts for _ in range(n)]
    params = [
        SamplingParams(settings.max_reply_tokens, settings.temperature, seed=derive_seed(seed, first + i // n, i % n))
        for i in range(len(asked))
    ]
    completions = collector.sample(asked, params)
    texts = collector.texts(completions)
    scores = collector.scores(asked, texts)
    # The first of equals, so that the choice does not depend on anything else.
    best = [max(range(i, i + n), key=lambda k: (scores[k], -k)) for i in range(0, len(asked), n)]
    chosen: list[Completion] = [completions[i] for i in best]
    rollout = collector.measure(prompts, chosen, [texts[i] for i in best], [scores[i] for i in best])
    # Choosing among n adds its own distance to that of the policy from which the n came.
    kls = [kl + best_of_n_kl(n) for kl in rollout.kl_nats.tolist()]
    entropies = rollout.entropies.sum(dim=1) / rollout.reply_tokens
    columns = zip(
        prompts, rollout.texts, rollout.scores.tolist(), kls, rollout.completions, entropies.tolist(), strict=True
    )
    records: list[dict[str, Any]] = [
        {
            "prompt_id": prompt.id,
            "kind": prompt.kind,
            "messages": list(prompt.messages),
            "reply": text,
            "score": score,
            "kl_nats": kl,
            "reply_tokens": len(completion.ids),
            "truncated": completion.finished == "length",
            "entropy": entropy,
            "repeated_ngrams": repeated_ngrams(completion.ids),
        }
        for prompt, text, score, kl, completion, entropy in columns
    ]
    if settings.best_of_points:
        for i, record in enumerate(records):
            record["scores"] = scores[i * n : (i + 1) * n]
    if watcher is not None:
        for record, score in zip(records, collector.scores(prompts, rollout.texts, watcher), strict=True):
            record["watcher_score"] = score
    return records


def best_of_points(records: Sequence[dict[str, Any]], ks: Sequence[int]) -> list[dict[str, Any]]:
    """For each k the expected score of the best of k, from the `scores` of all n replies to each prompt.

    The estimate is unbiased for every k up to n, and its interval is over prompts. `kl_nats` is log k − (k − 1)/k, the
    distance of the best of k to the policy that wrote the k: where that is the initial policy, the whole distance.
    """
    points = []
    for k in ks:
        score, ci = mean_interval_json([expected_best_of(record["scores"], k) for record in records])
        points.append(
            {"k": k, "kl_nats": best_of_n_kl(k), "pm_score": score, "pm_score_ci": ci, "num_prompts": len(records)}
        )
    return points


def summary(records: Sequence[dict[str, Any]], best_of: int) -> dict[str, Any]:
    """Means with 95 % intervals over prompts, for all and for each kind.

    `kl_nats` is the mean over replies of the sum of log pi/pi_0, plus log n - (n - 1)/n where the best of n was
    chosen. `entropy` is per token, `truncated` a share; `collapse` is described in models/statistics/reply_signals.py.
    Refusals of `by_kind.helpful` are those of ordinary requests. `watcher_score` is there where a watcher was given.
    """
    by_kind = {kind: [record for record in records if record["kind"] == kind] for kind in KINDS}
    return _means(records) | {
        "best_of": best_of,
        "by_kind": {kind: _means(mine) for kind, mine in by_kind.items() if mine},
    }


def paired_gain(records: Sequence[dict[str, Any]], base: Path) -> dict[str, Any]:
    """Mean difference of scores to an earlier evaluation, over the prompts that both judged.

    With a watcher in both also its gain, and the twin gap: the training PM's gain minus the watcher's.

    Raises:
        JobError: the two share no prompt.
    """
    with (base / "replies.jsonl").open(encoding="utf-8") as file:
        earlier = {record["prompt_id"]: record for record in map(json.loads, file)}
    pairs = [(record, earlier[record["prompt_id"]]) for record in records if record["prompt_id"] in earlier]
    if not pairs:
        raise JobError(f"{base} judged none of these {len(records)} prompts. Evaluate both on the same prompt set.")
    gains = [now["score"] - then["score"] for now, then in pairs]
    mean, ci = mean_interval_json(gains)
    gain: dict[str, Any] = {"mean": mean, "ci": ci, "n": len(gains)}
    if all("watcher_score" in record for pair in pairs for record in pair):
        watchers = [now["watcher_score"] - then["watcher_score"] for now, then in pairs]
        gap, gap_ci = mean_interval_json([mine - its for mine, its in zip(gains, watchers, strict=True)])
        gain |= {"watcher": mean_interval_json(watchers)[0], "twin_gap": gap, "twin_gap_ci": gap_ci}
    return gain


def _means(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    score, score_ci = mean_interval_json([record["score"] for record in records])
    kl, kl_ci = mean_interval_json([record["kl_nats"] for record in records])
    tokens = sum(record["reply_tokens"] for record in records)
    means: dict[str, Any] = {
        "pm_score": score,
        "pm_score_ci": score_ci,
        "kl_nats": kl,
        "kl_ci": kl_ci,
        "num_prompts": len(records),
        "reply_tokens": tokens / len(records),
        "truncated": sum(record["truncated"] for record in records) / len(records),
        "entropy": math.fsum(record["entropy"] * record["reply_tokens"] for record in records) / tokens,
        "collapse": collapse_signals(
            [record["reply"] for record in records], [record["repeated_ngrams"] for record in records]
        ),
    }
    if all("watcher_score" in record for record in records):
        means["watcher_score"], means["watcher_score_ci"] = mean_interval_json(
            [record["watcher_score"] for record in records]
        )
    return means


if __name__ == "__main__":
    main(NAME, run)
