"""bfloat16: really computed in it where that is asked, within a bound of float32, and as exact where it must be."""

import random
from array import array

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, GPTNeoXConfig, LlamaConfig, Qwen2Config

from models.backbone.precision import computing_in, multiplying_in
from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.policy.critic import Critic
from models.policy.model import Policy
from models.policy.reply_chunks import reply_chunks
from models.policy.rollout import SAMPLER_BOUNDS
from models.preference.loss import preference_loss
from models.preference.model import PreferenceModel, pair_scores, tree_scores
from models.preference.pairs import TokenPair
from models.preference.trees import pair_trees
from models.runtime.job import JobError
from models.sampling import llama
from models.sampling.engine import DecodeEngine, SamplingParams
from tests.models.marked_words import write_scorer
from tests.models.ppo_runs import metrics, results

CPU = torch.device("cpu")
# A bfloat16 has 8 significant bits: a rounding is off by at most 1 part in 256, and errors of a few layers add up.
RELATIVE = 0.03
# Those of a gradient add up on the way back as well.
RELATIVE_OF_GRADIENTS = 0.1
SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SMALL),
}


def comparisons(count=12):
    draw = random.Random(0)

    def ids(n):
        return array("i", [*(draw.randrange(3, 40) for _ in range(n)), 2])

    return [
        TokenPair("c", "test", "helpful", ids(draw.randrange(2, 9)), ids(draw.randrange(1, 9)), ids(draw.randrange(9)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_ppo_in_bfloat16_starts_as_exactly_and_keeps_float32_weights(train, critic):
    out = train(iterations=2, precision="bfloat16", critic=critic)
    first, second = metrics(out)
    assert (first["objective/kl"], first["val/ratio_first"], second["val/ratio_first"]) == (0.0, 1.0, 1.0)
    assert first["val/ratio"] != 1.0 != second["objective/kl"]
    assert all(tensor.dtype == torch.float32 for tensor in load_file(out / "result" / "model.safetensors").values())
    assert results(out)["settings"]["precision"] == "bfloat16"


def test_ppo_in_bfloat16_learns_what_the_preference_model_likes(train):
    numbers = results(train(iterations=15, precision="bfloat16", prompts_per_iteration=64, minibatch_replies=32))
    assert numbers["score_end"] > numbers["score_start"] + 1.0
    assert numbers["kl_nats"] > 0.5


def test_the_sampler_in_bfloat16_is_beyond_the_bound_of_float32_and_within_its_own(train, qwen2_policy_dir, tmp_path):
    scorer = write_scorer(qwen2_policy_dir, tmp_path / "scorer")
    for name, inputs in (("llama", {}), ("qwen2", {"initial": qwen2_policy_dir, "scorer": scorer})):
        largest = results(train(name, iterations=2, precision="bfloat16", **inputs))["sampler_logratio_max"]
        assert SAMPLER_BOUNDS["float32"] < largest < SAMPLER_BOUNDS["bfloat16"] == 0.15, name


def test_interrupted_bfloat16_training_ends_with_the_same_bytes(train, monkeypatch):
    from models.policy.learning import PolicyLearner

    settings = {"iterations": 4, "checkpoint_every": 2, "precision": "bfloat16"}
    whole = train("whole", **settings) / "result" / "model.safetensors"
    learn = PolicyLearner.learn

    def dies(self, iteration, *args):
        if iteration == 3:
            raise KeyboardInterrupt
        return learn(self, iteration, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyLearner, "learn", dies)
        with pytest.raises(KeyboardInterrupt):
            train("killed", **settings)
    again = train("killed", **settings) / "result" / "model.safetensors"
    assert whole.read_bytes() == again.read_bytes()


def test_policy_and_critic_compute_in_bfloat16_and_values_and_weights_are_float32(policy_dir):
    model = load_causal_lm(policy_dir)
    chunk = reply_chunks([[5, 6, 7], [8]], [[9, 10], [11]], [0, 1], width=2, pad_id=0, chunk_tokens=100)[0]
    exact, rounded = (Policy(model, precision).states_and_logits(chunk)[1] for precision in ("float32", "bfloat16"))
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    error = (exact - rounded.float()).norm() / exact.norm()
    assert 1e-4 < error < RELATIVE
    critic = Critic("separate", model.base_model, precision="bfloat16")
    with torch.no_grad():
        critic.head.outer.weight.fill_(0.1)
    values = critic(chunk, exact)
    same_trunk = Critic("separate", model.base_model)
    same_trunk.head.load_state_dict(critic.head.state_dict())
    expected = same_trunk(chunk, exact)
    assert values.dtype == torch.float32
    assert 0 < (values - expected).norm() / expected.norm() < RELATIVE
    (values.sum() + rounded.float().sum()).backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in [*model.parameters(), *critic.parameters()])


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_a_preference_model_in_bfloat16_are_those_of_float32_within_rounding(name):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name])
    pairs = comparisons()
    trees = pair_trees(pairs, 10_000)
    order = [i for tree in trees for i in tree.pairs]

    def gradients(precision, packed):
        model.zero_grad()
        with computing_in(precision, CPU):
            better, worse = tree_scores(model, trees, CPU) if packed else pair_scores(model, pairs, 0, CPU)
        assert better.dtype == worse.dtype == torch.float32  # also in bfloat16 a score has all its digits
        preference_loss(better, worse, torch.ones(len(pairs))).backward()
        scores = torch.stack([better, worse])
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return scores if packed else scores[:, order], gradient

    exact_scores, exact_gradient = gradients("float32", packed=False)
    for packed in (False, True):
        scores, gradient = gradients("bfloat16", packed)
        assert 1e-5 < (scores - exact_scores).norm() / exact_scores.norm() < RELATIVE
        assert 1e-5 < (gradient - exact_gradient).norm() / exact_gradient.norm() < RELATIVE_OF_GRADIENTS


def test_a_preference_model_scores_in_the_precision_it_is_told(policy_dir, scorer_dir):
    scorer = PreferenceModel.load(scorer_dir)
    ids = ChatFormat.load(policy_dir).score_ids(
        [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "abe"}]
    )
    exact = scorer.score_sequences([ids])[0]
    scorer.precision = "bfloat16"
    rounded = scorer.score_sequences([ids])[0]
    assert exact != rounded == pytest.approx(exact, rel=RELATIVE)


@pytest.mark.parametrize("own_decoder", [True, False])
def test_replies_are_sampled_in_bfloat16(policy_dir, monkeypatch, own_decoder):
    if not own_decoder:
        monkeypatch.setattr(llama, "supports", lambda model: False)
    model = load_causal_lm(policy_dir)
    logps = {}
    for precision in ("float32", "bfloat16"):
        reply = DecodeEngine(model, 1, 4, 64, precision).generate([[5, 6, 7]], SamplingParams(1, seed=3))[0]
        assert len(reply.ids) == 1
        logps[precision] = reply.logprobs[0]
    assert 1e-5 < abs(logps["float32"] - logps["bfloat16"]) < SAMPLER_BOUNDS["bfloat16"]


def test_another_precision_is_refused(train):
    with pytest.raises(JobError, match="precision is 'float16'; expected Literal\\['float32', 'tf32', 'bfloat16'\\]"):
        train(precision="float16")


def test_tf32_is_for_the_products_of_a_gpu_inside_the_block_alone():
    found = torch.get_float32_matmul_precision
    assert found() == "highest"
    with multiplying_in("tf32", "cuda"):
        assert found() == "high"
        with multiplying_in("float32", "cuda"):
            assert found() == "highest"
        assert found() == "high"
    with multiplying_in("tf32", "cpu"):
        assert found() == "highest"
    with pytest.raises(ZeroDivisionError), multiplying_in("tf32", "cuda"):
        raise ZeroDivisionError
    assert found() == "highest"


def test_on_a_cpu_tf32_is_float32_and_says_so(train, capsys):
    exact, named = metrics(train("exact", iterations=2)), metrics(train("named", iterations=2, precision="tf32"))
    times = [key for key in exact[0] if key.startswith("perf/") or key == "eps"]
    for line in (*exact, *named):
        for key in times:
            del line[key]
    assert named == exact
    assert "only GPUs know tf32" in capsys.readouterr().err
