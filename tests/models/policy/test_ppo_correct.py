"""What must hold in every run of PPO, held on the real parts: sampler, chat format, reading, job.

Beside it: rewards, advantages and losses by hand in test_ppo.py; padding, first ratio, KL 0 at the start and zero
optimiser steps in test_train_policy.py; the best policy by enumeration in test_ppo_known_answer.py.
"""

import json

import pytest
import torch

from models.chat.format import ChatFormat
from models.jobs import train_policy
from models.model_folders.loading import load_causal_lm
from models.policy import training as training_module
from models.policy.model import Policy
from models.policy.ppo import token_rewards
from models.policy.reply_chunks import reply_chunks
from models.policy.rollout import SAMPLER_BOUNDS, RolloutCollector
from models.policy.settings import PPOSettings
from models.sampling.engine import Completion, DecodeEngine
from tests.models.marked_words import write_scorer
from tests.models.ppo_runs import metrics
from tests.models.tiny_folders import LLAMA3, prepare, write_llama

TIMES = ("eps", "perf/")


@pytest.mark.parametrize("pad", ["its own", "the end of turn"])
def test_score_lands_on_the_last_real_token_however_the_reply_ends(policy_dir, pad):
    # Reply 0 ended by itself after two tokens and the end of turn, reply 1 was cut off at four, reply 2 ended at once.
    chat, model = ChatFormat.load(policy_dir), load_causal_lm(policy_dir)
    if pad == "the end of turn":
        chat.pad_id = chat.eos_id
    collector = RolloutCollector(
        Policy(model), Policy(model), None, chat, DecodeEngine(model, chat.eos_id), torch.device("cpu")
    )
    replies = [[20, 21, chat.eos_id], [22, 23, 24, 25], [chat.eos_id]]
    completions = [Completion([7, 8, 9], ids, [0.0] * len(ids), "stop") for ids in replies]
    rollout = collector.measure([None] * 3, completions, [""] * 3, [1.0, 2.0, 3.0])
    assert rollout.response_mask.tolist() == [[True, True, True, False], [True] * 4, [True, False, False, False]]
    rewards = token_rewards(rollout.scores, rollout.logps - rollout.ref_logps, rollout.response_mask, 0.1)
    assert rewards.tolist() == [[0, 0, 1, 0], [0, 0, 0, 2], [3, 0, 0, 0]]  # policy = reference: no penalty at all
    # The end-of-turn token is learned: its log-prob is read, and it is the plain forward's.
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([[7, 8, 9, 20, 21]])).logits[0], -1)
    assert rollout.logps[0, 2].item() == pytest.approx(logps[-1, chat.eos_id].item(), abs=1e-5)


def test_every_sequence_that_a_model_reads_has_exactly_one_bos(tmp_path, prompts_dir):
    # Llama 3's template writes the BOS itself, and its tokenizer would write another.
    policy = prepare(write_llama(tmp_path / "llama", template=LLAMA3), tmp_path / "policy")
    scorer = write_scorer(policy, tmp_path / "scorer")
    chat = ChatFormat.load(policy)
    inputs = {"initial": str(policy), "preference_model": str(scorer), "prompts": str(prompts_dir)}
    job = train_policy.Job({"job": "train_policy", "inputs": inputs, "device": "cpu"}, tmp_path)
    settings = PPOSettings(prompts_per_iteration=8, minibatch_replies=8, max_reply_tokens=6)
    training = training_module.PolicyTraining(job, settings, chat)
    read = []
    for model in (training.policy.model, training.collector.reference.model, training.collector.preference_model.model):
        model.base_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
        )
    rollout, _ = training._rollout(0)
    assert len(read) == 3
    for ids in read:
        assert (ids[:, 0] == chat.bos_id).all()
    # A policy may draw the BOS as any other token; in what it was asked there is one.
    assert all(completion.prompt_ids.count(chat.bos_id) == 1 for completion in rollout.completions)
    assert all((row == chat.bos_id).sum() == 1 for row in read[0])


def test_the_samplers_log_probs_are_watched_and_within_the_bound(train):
    out = train(iterations=2)
    lines = metrics(out)
    assert SAMPLER_BOUNDS["float32"] == 1e-4
    for line in lines:
        assert 0 < line["sampler/logratio_mean"] <= line["sampler/logratio_max"] <= 1e-4
    recorded = json.loads((out / "result" / "results.json").read_text())["sampler_logratio_max"]
    assert recorded == max(line["sampler/logratio_max"] for line in lines)


def test_a_sampler_beyond_the_bound_is_told_and_changes_nothing_else(train, monkeypatch, capsys):
    right = train("right", iterations=2)
    assert "log-probs" not in capsys.readouterr().err
    generate = DecodeEngine.generate

    def wrong(self, prompts, params):
        completions = generate(self, prompts, params)
        completions[0].logprobs[0] += 0.01
        return completions

    monkeypatch.setattr(DecodeEngine, "generate", wrong)
    off = train("off", iterations=2)
    told = capsys.readouterr().err
    assert told.count("expected at most 0.0001; learning uses the ones read again") == 1
    assert metrics(off)[0]["sampler/logratio_max"] == pytest.approx(0.01, abs=1e-4)
    weights = [(out / "result" / "model.safetensors").read_bytes() for out in (right, off)]
    assert weights[0] == weights[1]


def test_one_seed_gives_one_curve_bit_for_bit_and_another_seed_another(train):
    def curve(name, seed):
        lines = metrics(train(name, seed=seed, iterations=3))
        return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines]

    first, again, other = curve("first", 1), curve("again", 1), curve("other", 2)
    assert first == again
    assert all(
        one["objective/scores"] != another["objective/scores"] for one, another in zip(first, other, strict=True)
    )


def test_metrics_have_the_names_that_trls_users_know(train):
    lines = metrics(train(iterations=2))
    known = {
        *("eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward"),
        *("objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg"),
        *("policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode"),
        *("perf/tokens_per_s", "perf/sample_s", "perf/score_s", "perf/read_s", "perf/learn_s"),
    }
    assert known <= lines[0].keys()
    for line in lines:
        reward = line["objective/scores"] + line["objective/non_score_reward"]
        assert line["objective/rlhf_reward"] == pytest.approx(reward, abs=1e-6)
        assert line["val/num_eos_tokens"] == round(16 * (1 - line["truncated"]))
        # Four steps of two epochs; the first is exactly 1, the others are not.
        assert line["val/ratio_var"] > 0
    # Before anything was learned the minibatches read what the rollout read.
    assert lines[0]["policy/entropy_avg"] == pytest.approx(lines[0]["objective/entropy"], rel=0.1)
    assert [line["episode"] for line in lines] == [16, 32]
    assert "perf/mfu" not in lines[0]  # no peak is stated for a CPU


def test_times_stay_out_of_the_result(train):
    recorded = json.loads((train(iterations=1) / "result" / "results.json").read_text())
    assert [key for key in recorded if key.startswith("perf") or key.endswith(("_s", "seconds")) or key == "eps"] == []


def test_numbers_that_products_cost(policy_dir):
    from models.backbone.throughput import product_parameters

    model = load_causal_lm(policy_dir)
    config = model.config
    hidden, inner, rows = config.hidden_size, config.intermediate_size, config.vocab_size
    # Two layers: query and output hidden², key and value half of it each (2 of 4 heads), three matrices of the MLP.
    per_layer = hidden * hidden * (1 + 1 + 0.5 + 0.5) + 3 * hidden * inner
    assert product_parameters(model) == 2 * per_layer + rows * hidden  # and the head; the embedding is looked up


def test_padding_id_of_a_chunk_is_never_read(policy_dir):
    model = load_causal_lm(policy_dir)
    readings = [
        Policy(model).read(
            reply_chunks([[5, 6, 7], [8]], [[9, 10, 11], [12]], [0, 1], width=3, pad_id=pad, chunk_tokens=99), (2, 3)
        )
        for pad in (0, 17)
    ]
    assert torch.equal(readings[0].logps, readings[1].logps)
