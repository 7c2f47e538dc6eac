"""Over-optimisation in a world whose truth is known: the twin gap opens, the run stops, and the better weights stay.

Raters like the letter e and dislike the letter o. The training PM learns from a few comparisons of one rater who likes
o and cares for nothing else; its watcher from many comparisons of the others. PPO against the first fills its replies
with o.
"""

import json
import random

import pytest
import torch

from models.chat.format import ChatFormat
from models.jobs import train_policy, train_preference_model
from models.model_folders.loading import load_causal_lm
from models.runtime.job import Job
from models.sampling.engine import DecodeEngine, SamplingParams
from tests.models.marked_words import write_prompts
from tests.models.preference_world import write_comparison_set

REPLY_TOKENS = 8
PM = {"batch_pairs": 16, "learning_rate": 2e-3}
PPO = {
    "learning_rate": 3e-3,
    "prompts_per_iteration": 64,
    "minibatch_replies": 32,
    "max_reply_tokens": REPLY_TOKENS,
    "iterations": 24,
    "kl_coef": 0.0,
}


def true_score(text):
    return float(text.count("e") - text.count("o"))


def biased_score(text):
    return float(text.count("o"))


def comparisons(chat, number, seed, score):
    """Pairs of replies of random tokens of which a rater prefers the one with the higher score."""
    generator = random.Random(seed)
    sayable = [i for i in range(chat.vocab_size) if i not in chat.control_ids]
    records = []
    while len(records) < number:
        better, worse = (chat.decode(generator.choices(sayable, k=REPLY_TOKENS)) for _ in range(2))
        if score(better) == score(worse):
            continue
        if score(better) < score(worse):
            better, worse = worse, better
        records.append(
            {
                "id": f"{seed}-{len(records):04}",
                "split": "train" if len(records) % 8 else "held_out",
                "source": "world",
                "tranche": "base",
                "question": "helpful",
                "strength": None,
                "rater": "r1",
                "turn": 1,
                "prompt": [{"role": "user", "content": f"Hello, how are you? {len(records)}"}],
                "better": [{"role": "assistant", "content": better}],
                "worse": [{"role": "assistant", "content": worse}],
            }
        )
    return records


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a job in this process: run(module, inputs, settings, seed) -> its output directory."""

    def start(module, inputs, settings, seed):
        out = tmp_path_factory.mktemp(module.NAME)
        inputs = {role: str(path) for role, path in inputs.items()}
        job = Job({"inputs": inputs, "settings": settings, "seed": seed, "device": "cpu"}, out)
        job.prepare_process()
        module.run(job)
        return out

    yield start
    torch.use_deterministic_algorithms(False)


def mean_true_score(folder, count=400):
    """Of replies to one prompt; its standard error is about 0.1."""
    chat, model = ChatFormat.load(folder), load_causal_lm(folder)
    prompt = chat.encode([{"role": "user", "content": "Hello, how are you?"}], reply=True)
    engine = DecodeEngine(model, chat.eos_id, max_slots=count)
    replies = engine.generate([prompt] * count, [SamplingParams(REPLY_TOKENS, seed=i) for i in range(count)])
    return sum(true_score(chat.decode(reply.ids)) for reply in replies) / count


# One seed holds the mechanism; that it does not hang on the seed takes longer than CI has.
@pytest.mark.parametrize(
    "seed",
    [pytest.param(0, marks=pytest.mark.slow), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))],
)
def test_the_twin_gap_stops_a_run_that_games_a_weak_preference_model(run, policy_dir, tmp_path, seed):
    chat = ChatFormat.load(policy_dir)
    few = write_comparison_set(tmp_path / "few", comparisons(chat, 240, 2 * seed + 1, biased_score))
    many = write_comparison_set(tmp_path / "many", comparisons(chat, 900, 2 * seed + 2, true_score))
    weak, watcher = (
        run(train_preference_model, {"initial": policy_dir, "comparisons": folder}, PM | {"epochs": epochs}, seed)
        / "result"
        for folder, epochs in ((few, 8), (many, 2))
    )
    prompts = write_prompts(tmp_path / "prompts")
    inputs = {"initial": policy_dir, "preference_model": weak, "watcher": watcher, "prompts": prompts}
    results, true = {}, {}
    for name, gap in (("watched", 1.0), ("unwatched", 0.0)):
        out = run(train_policy, inputs, PPO | {"watch": {"max_twin_gap": gap}}, seed)
        results[name] = json.loads((out / "result" / "results.json").read_text())
        true[name] = mean_true_score(out / "result")
    start = results["unwatched"]["curve"][0]["score"]
    # Left alone, the training PM is more and more pleased, its watcher is not, and the replies become worse.
    assert results["unwatched"]["stopped"] is None
    assert results["unwatched"]["score_end"] > start + 2.0
    assert results["unwatched"]["watch"]["end"]["twin_gap"] > 2.0
    assert true["unwatched"] < mean_true_score(policy_dir) - 1.0
    # Watched, the run ends early, and what it keeps is better than what it would have become.
    assert results["watched"]["watch"]["stopped_by"] == "twin_gap"
    assert len(results["watched"]["curve"]) < PPO["iterations"]
    # By 0.8 with the seed that shows it least.
    assert true["watched"] > true["unwatched"] + 0.5
    # The weights that are kept are those of before the gap was beyond the wire.
    tripped = [alarm["iteration"] for alarm in results["watched"]["watch"]["alarms"]][-2:]
    assert results["watched"]["curve"][: tripped[0]] == results["unwatched"]["curve"][: tripped[0]]
    assert results["watched"]["watch"]["end"]["twin_gap"] < results["unwatched"]["watch"]["end"]["twin_gap"]
