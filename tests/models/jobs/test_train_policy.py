"""PPO end to end on a tiny world: it learns what it should, starts exactly, stops, and resumes to the same bytes."""

import json
import math
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.policy.critic import ValueHead
from models.policy.inputs import prompts_that_fit
from models.policy.model import Policy, selected_logps
from models.policy.prompts import Prompt, PromptSetError, PromptStream, load_prompts
from models.policy.reply_chunks import reply_chunks
from models.policy.settings import PPOSettings
from models.preference.model import PreferenceModel
from models.runtime.job import JobError
from models.sampling.engine import DecodeEngine, SamplingParams
from tests.models.marked_words import marked_share, share_of_marked_tokens, write_scorer
from tests.models.ppo_runs import LARGER, metrics, results
from tests.paths import PROJECT_ROOT

ROUNDING = 1e-5


def test_hand_made_scorer_scores_the_share_of_marked_tokens(policy_dir, scorer_dir):
    chat = ChatFormat.load(policy_dir)
    dialogues = [
        [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": text}] for text in ("e" * 6, "a" * 6)
    ]
    marked, plain = PreferenceModel.load(scorer_dir).score(dialogues)
    ids = chat.score_ids(dialogues[0])
    assert plain == pytest.approx(0.0, abs=ROUNDING)
    assert marked == pytest.approx(10 * marked_share(chat, ids), rel=0.01)  # the norm bends it by less than 1 %


def test_ppo_learns_what_the_preference_model_likes(train, policy_dir):
    out = train(iterations=15, **LARGER)
    numbers = results(out)
    before, after = share_of_marked_tokens(policy_dir), share_of_marked_tokens(out / "result")
    assert after > before + 0.2
    assert numbers["score_end"] > numbers["score_start"] + 1.0
    assert numbers["kl_nats"] > 0.5
    assert numbers["optimiser_steps"] == 15 * 2 * 2  # iterations, epochs, minibatches
    assert numbers["samples"] == 15 * 64
    assert numbers["stopped"] is None
    assert [point["samples"] for point in numbers["curve"]] == list(range(0, 15 * 64, 64))


def test_ppo_avoids_what_the_preference_model_dislikes(train, policy_dir, tmp_path):
    scorer = write_scorer(policy_dir, tmp_path / "against", sign=-1.0)
    out = train(iterations=15, scorer=scorer, **LARGER)
    assert share_of_marked_tokens(out / "result") < 0.5 * share_of_marked_tokens(policy_dir)
    assert results(out)["score_end"] > results(out)["score_start"]


@pytest.mark.parametrize("critic", ["shared", "detached", "separate", "preference_model"])
def test_training_starts_at_kl_exactly_zero_and_ratio_exactly_one(train, critic):
    first, second = metrics(train(iterations=2, critic=critic))
    assert first["objective/kl"] == 0.0
    assert first["val/ratio_first"] == 1.0
    assert second["val/ratio_first"] == 1.0
    assert second["objective/kl"] != 0.0
    assert first["val/ratio"] != 1.0  # the second minibatch meets changed weights
    assert {"objective/scores_helpful", "objective/scores_harmless", "policy/clipfrac_avg", "eps"} <= first.keys()


def test_learning_rate_zero_changes_nothing(train, policy_dir):
    out = train(iterations=2, learning_rate=0.0)
    numbers = results(out)
    assert numbers["kl_nats"] == 0.0
    assert numbers["optimiser_steps"] == 8
    before, after = (load_file(folder / "model.safetensors") for folder in (policy_dir, out / "result"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_without_an_iteration_is_refused(train):
    with pytest.raises(JobError, match="iterations is 0; expected at least 1"):
        train(iterations=0)


def test_training_stops_beyond_the_kl_limit_with_the_last_good_weights(train):
    # A run that ends by itself one iteration earlier has the weights to which the limited run goes back.
    limited = train("limited", iterations=15, max_kl_nats=1.0, learning_rate=3e-4)
    numbers = results(limited)
    learned = len(numbers["curve"])
    assert f"above max_kl_nats 1 in iteration {learned + 1}" in numbers["stopped"]
    assert 2 <= learned < 15
    assert all(point["kl_nats"] <= 1.0 for point in numbers["curve"])
    shorter = train("shorter", iterations=learned - 1, learning_rate=3e-4)
    weights = [(out / "result" / "model.safetensors").read_bytes() for out in (limited, shorter)]
    assert weights[0] == weights[1]


def test_result_is_a_folder_that_transformers_loads(train, policy_dir):
    result = train(iterations=1) / "result"
    for name in ("chat.json", "chat_template.jinja", "tokenizer.json"):
        assert (result / name).read_bytes() == (policy_dir / name).read_bytes()
    assert "Policy snapshot" in (result / "README.md").read_text()
    assert load_causal_lm(result).config.eos_token_id == ChatFormat.load(policy_dir).eos_id


def test_qwen2_is_trained_too(train, qwen2_policy_dir, tmp_path):
    scorer = write_scorer(qwen2_policy_dir, tmp_path / "scorer")
    assert results(train(iterations=1, initial=qwen2_policy_dir, scorer=scorer))["kl_nats"] != 0.0


def test_preference_model_of_another_tokenizer_is_refused(train, qwen2_policy_dir, tmp_path):
    scorer = write_scorer(qwen2_policy_dir, tmp_path / "scorer")
    with pytest.raises(JobError, match="differs from the initial policy's"):
        train(iterations=1, scorer=scorer)


def test_killed_training_ends_with_the_same_bytes(train, tmp_path):
    settings = {"iterations": 12, "checkpoint_every": 2, "max_kl_nats": 100.0}
    whole = train("whole", seed=3, **settings) / "result"
    # The same job as a process of its own, killed after its fifth iteration and continued from a checkpoint.
    killed = tmp_path / "killed"
    spec = json.loads((tmp_path / "whole" / "spec.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "models.jobs.train_policy", "--spec", str(tmp_path / "spec.json"), "--out"]
    with subprocess.Popen([*command, str(killed)], cwd=PROJECT_ROOT) as process:
        lines = killed / "metrics.jsonl"
        deadline_s = time.monotonic() + 120
        while not (lines.exists() and lines.read_text().count("\n") >= 5):
            assert process.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.kill()
    assert not (killed / "result").exists()
    train("killed", seed=3, **settings)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in (killed / "result").iterdir())
    assert [name for name in names if (whole / name).read_bytes() != (killed / "result" / name).read_bytes()] == []
    assert json.loads((killed / "run.json").read_text())["resumed_at_step"] >= 2  # 4, if it was written
    assert [json.loads(line)["step"] for line in lines.read_text().splitlines()] == list(range(1, 13))


# Reading reply tokens


def test_log_probs_of_reply_tokens_do_not_depend_on_padding_and_equal_the_samplers(policy_dir):
    chat, model = ChatFormat.load(policy_dir), load_causal_lm(policy_dir)
    prompts = [chat.encode([{"role": "user", "content": "word " * n}], reply=True) for n in (1, 9, 4, 2)]
    replies = DecodeEngine(model, chat.eos_id).generate(prompts, [SamplingParams(3 + 4 * i, seed=i) for i in range(4)])
    layout = {"width": 15, "pad_id": chat.pad_id}
    ids = [reply.ids for reply in replies]
    together = reply_chunks(prompts, ids, range(4), chunk_tokens=10_000, **layout)
    apart = [chunk for row in range(4) for chunk in reply_chunks(prompts, ids, [row], chunk_tokens=1, **layout)]
    assert (len(together), len(apart)) == (1, 4)
    padded, plain = (Policy(model).read(chunks, (4, 15)) for chunks in (together, apart))
    assert torch.allclose(padded.logps, plain.logps, atol=ROUNDING)
    assert torch.allclose(padded.entropies, plain.entropies, atol=ROUNDING)
    for row, reply in enumerate(replies):
        assert plain.logps[row, : len(reply.ids)].tolist() == pytest.approx(reply.logprobs, abs=1e-4)
        assert torch.equal(plain.logps[row, len(reply.ids) :], torch.zeros(15 - len(reply.ids)))


def test_selected_log_probs_entropy_and_gradient_by_hand():
    # Probabilities 1/2, 1/4, 1/4: entropy 1.5 bits = 1.0397 nats. The gradient of log p(1) by the logits is
    # (0, 1, 0) - (1/2, 1/4, 1/4).
    logits = torch.tensor([[2.0, 1.0, 1.0]]).mul(torch.log(torch.tensor(2.0))).requires_grad_()
    logps, entropies = selected_logps(logits, torch.tensor([1]))
    logps.sum().backward()
    assert logps.item() == pytest.approx(-1.386294, abs=ROUNDING)
    assert entropies.item() == pytest.approx(1.039721, abs=ROUNDING)
    assert torch.allclose(logits.grad, torch.tensor([[-0.5, 0.75, -0.25]]), atol=ROUNDING)


def test_selected_log_probs_have_the_gradient_of_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, requires_grad=True)
    ids, weights = torch.tensor([0, 6, 3, 3, 1]), torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    (selected_logps(logits, ids)[0] * weights).sum().backward()
    fused, logits.grad = logits.grad, None
    (torch.log_softmax(logits, -1)[torch.arange(5), ids] * weights).sum().backward()
    assert torch.allclose(fused, logits.grad, atol=ROUNDING)


def test_new_critic_expects_its_bias_everywhere():
    head = ValueHead(16)
    with torch.no_grad():
        head.outer.bias.fill_(2.5)
    assert head(torch.randn(3, 16)).tolist() == [2.5, 2.5, 2.5]


# Prompts


def some_prompts(helpful, harmless):
    kinds = ["helpful"] * helpful + ["harmless"] * harmless
    return [Prompt(f"{kind} {i}", kind, (), (1,)) for i, kind in enumerate(kinds)]


def test_stream_visits_every_prompt_once_a_pass_and_mixes_by_weight():
    stream = PromptStream(some_prompts(6, 3), harmless_weight=2.0, seed=1)
    assert stream.harmless_share == 0.5  # 2 * 3 against 6
    drawn = [prompt.id for prompt in stream.batch(0, 12)]
    assert sum(name.startswith("harmless") for name in drawn) == 6
    assert len(set(drawn)) == 9  # six helpful prompts once, three harmless ones twice
    assert drawn == [prompt.id for place in range(0, 12, 5) for prompt in stream.batch(place, 5)][:12]
    assert drawn != [prompt.id for prompt in PromptStream(some_prompts(6, 3), 2.0, seed=2).batch(0, 12)]


def test_weight_zero_leaves_harmless_prompts_out():
    stream = PromptStream(some_prompts(2, 5), harmless_weight=0.0, seed=1)
    assert {prompt.kind for prompt in stream.batch(0, 20)} == {"helpful"}
    with pytest.raises(PromptSetError, match="harmless_weight is 0"):
        PromptStream(some_prompts(0, 5), harmless_weight=0.0, seed=1)


def test_prompts_are_read_by_split_and_long_ones_counted(prompts_dir, policy_dir):
    chat = ChatFormat.load(policy_dir)
    found = load_prompts(prompts_dir, chat, "train", 1000)
    assert (len(found.prompts), found.num_too_long) == (12, 0)
    assert [prompt.id for prompt in found.prompts] == sorted(prompt.id for prompt in found.prompts)
    limit = sorted(len(prompt.ids) for prompt in found.prompts)[5]
    fewer = load_prompts(prompts_dir, chat, "train", limit)
    assert len(fewer.prompts) + fewer.num_too_long == 12
    assert fewer.num_too_long > 0
    with pytest.raises(PromptSetError, match="0 prompts of split 'train' with at most 2 tokens \\(12 are longer"):
        load_prompts(prompts_dir, chat, "train", 2)
    with pytest.raises(PromptSetError, match=r"no prompts\.jsonl"):
        load_prompts(policy_dir, chat, "train", 1000)


def test_prompts_leave_room_for_a_reply_in_every_model(prompts_dir, policy_dir, scorer_dir, tmp_path):
    chat = ChatFormat.load(policy_dir)
    # No weights: they are looked at before anything is loaded.
    policy, scorer = tmp_path / "policy", tmp_path / "scorer"
    for folder in (policy, scorer):
        folder.mkdir()
    shutil.copy(scorer_dir / "config.json", scorer)
    config = json.loads((policy_dir / "config.json").read_text())
    lengths = sorted(len(prompt.ids) for prompt in load_prompts(prompts_dir, chat, "train", 1000).prompts)

    def fit(
        preference_tokens: float, reply: int, prompt: int | None = None, context: int = 1000
    ) -> tuple[list[int], int]:
        (policy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
        trained_on = {} if preference_tokens == math.inf else {"max_tokens": preference_tokens}
        (scorer / "results.json").write_text(json.dumps({"offset": None} | trained_on))
        settings = PPOSettings(max_reply_tokens=reply, max_prompt_tokens=prompt)
        found, longest = prompts_that_fit(prompts_dir, chat, "train", settings, [policy], [scorer])
        assert len(found.prompts) + found.num_too_long == 12
        return sorted(len(prompt.ids) for prompt in found.prompts), longest

    middle = lengths[5]
    shorter = [length for length in lengths if length <= middle]
    assert len(shorter) < 12
    assert fit(math.inf, 10) == (lengths, lengths[-1] + 10)
    # The policy's context, what the preference model was trained on (two ids close its text), and the setting.
    assert fit(math.inf, 10, context=middle + 10) == (shorter, middle + 10)
    assert fit(middle + 12, 10) == (shorter, middle + 10)
    assert fit(math.inf, 10, prompt=middle) == (shorter, middle + 10)
    assert fit(middle + 12, 10, prompt=1000) == (shorter, middle + 10)
    with pytest.raises(JobError, match="max_reply_tokens is 10, but the policy holds 10 tokens"):
        fit(math.inf, 10, context=10)
    with pytest.raises(JobError, match="trained on texts of up to 12 tokens, prompt included"):
        fit(12, 10)
    with pytest.raises(JobError, match=r"with at most 1 tokens .*raise max_prompt_tokens where it is given"):
        fit(math.inf, 10, prompt=1)
