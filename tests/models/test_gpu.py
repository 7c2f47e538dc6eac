"""The trainers on a GPU, with the CPU as the oracle: `pytest tests/models/test_gpu.py`. Skipped without one."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.backbone.adapters import restore
from models.backbone.precision import filling
from models.backbone.throughput import peak_flops
from models.chat.format import ChatFormat
from models.jobs.train_preference_model import run as train_preference_model
from models.model_folders.loading import load_causal_lm
from models.policy.critic import Critic
from models.policy.learning import PolicyLearner
from models.policy.model import Policy
from models.policy.recovery import LastGood
from models.policy.reply_chunks import reply_chunks
from models.policy.rollout import SAMPLER_BOUNDS
from models.preference.loss import preference_loss
from models.preference.model import PreferenceModel, can_pack, pair_scores, tree_scores
from models.preference.trees import pair_trees
from models.runtime.job import Job
from models.sampling.engine import DecodeEngine, SamplingParams
from tests.models.marked_words import write_scorer
from tests.models.ppo_runs import metrics, results
from tests.models.preference.tree_world import BATCH, CONFIGS, HIDDEN, NO_LIMIT, PAD, small_model
from tests.models.preference_world import polite_comparisons, write_comparison_set

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
CPU = torch.device("cpu")
# float32 sums in another order; tf32 is off by default.
LOGP_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-4
RELATIVE_GRADIENT = 1e-3


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("family", ["policy_dir", "qwen2_policy_dir"])
def test_policy_and_critic_read_what_they_read_on_the_cpu(request, family):
    folder = request.getfixturevalue(family)
    read = []
    for device in (CPU, DEVICE):
        model = load_causal_lm(folder, device=device)
        critic = Critic("separate", model.base_model)
        with torch.no_grad():
            critic.head.outer.weight.fill_(0.1)
        texts = {"prompts": [[5, 6, 7], [8], [9] * 40], "replies": [[9, 10], [11], [12] * 30]}
        fill = filling("float32", device)
        chunks = reply_chunks(**texts, rows=[2, 0, 1], width=30, pad_id=0, chunk_tokens=100, device=device, fill=fill)
        assert all((chunk.ids.shape[1] % 16 == 0) == (device == DEVICE) for chunk in chunks)
        reading = Policy(model).read(chunks, (3, 30), critic)
        read.append(torch.stack([reading.logps, reading.entropies, reading.values]).cpu())
    assert read[0].abs().sum() > 1
    assert torch.allclose(*read, rtol=0, atol=LOGP_TOLERANCE)


def test_the_sampler_draws_the_replies_that_it_draws_on_the_cpu(policy_dir):
    chat = ChatFormat.load(policy_dir)
    prompts = [[5 + i % 7] * (1 + 3 * i) for i in range(24)]
    drawn = []
    for device in (CPU, DEVICE):
        engine = DecodeEngine(load_causal_lm(policy_dir, device=device), chat.eos_id, max_slots=8)
        drawn.append(engine.generate(prompts, [SamplingParams(16, seed=i) for i in range(24)]))
    same = [ours for ours, theirs in zip(*drawn, strict=True) if ours.ids == theirs.ids]
    # A random number may fall within rounding distance of the border between two tokens, once in ten thousand.
    assert len(same) >= 23
    for ours, theirs in zip(*drawn, strict=True):
        if ours.ids == theirs.ids:
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=LOGP_TOLERANCE)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["policy_dir", "qwen2_policy_dir"])
def test_recorded_steps_draw_what_plain_ones_draw(request, capsys, family, precision):
    folder = request.getfixturevalue(family)
    chat, model = ChatFormat.load(folder), load_causal_lm(folder, device=DEVICE)
    prompts = [[5 + i % 7] * (1 + 3 * i) for i in range(24)]
    params = [SamplingParams(16 + 3 * i, seed=i) for i in range(24)]
    engines = [DecodeEngine(model, chat.eos_id, 8, precision=precision, graphs=graphs) for graphs in (None, False)]
    recorded = engines[0]._static
    assert recorded is not None
    assert engines[1]._static is None
    for scale in (1.0, 1.02):  # weights change, and graphs stay
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        drawn = []
        for engine in engines:
            engine.sync()
            engine.reserve(128)
            drawn.append(engine.generate(prompts, params))
        kept = dict(recorded._steps)
        assert all(type(step.__self__) is torch.cuda.CUDAGraph for step in kept.values())
        # Products of other sizes round differently: a reply goes another way where a random number falls in between.
        same = [ours for ours, theirs in zip(*drawn, strict=True) if ours.ids == theirs.ids]
        assert len(same) >= (23 if precision == "float32" else 12)
        for ours, theirs in zip(*drawn, strict=True):
            if ours.ids == theirs.ids:
                bound = LOGP_TOLERANCE if precision == "float32" else SAMPLER_BOUNDS["bfloat16"]
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=bound)
        graphs = {key: id(step.__self__) for key, step in kept.items()}
        if scale == 1.0:
            before = graphs
    assert before.items() <= graphs.items()
    assert recorded.works
    assert "note:" not in capsys.readouterr().err


CANNOT_RECORD = """
import sys

import torch

from models.model_folders.saving import load_causal_lm
from models.sampling.engine import DecodeEngine, SamplingParams
from models.sampling.llama import LlamaDecoder

device = torch.device(sys.argv[2])
model = load_causal_lm(sys.argv[1], device=device)
prompts, params = [[5, 6]] * 4, SamplingParams(8, seed=1)
expected = DecodeEngine(model, -1, 8, graphs=False).generate(prompts, params)
plain_step, stream = LlamaDecoder.step, torch.cuda.current_stream()


def asks_for_a_number(self, *args, **more):
    logits = plain_step(self, *args, **more)
    assert float(logits.sum()) != 0.0
    return logits


LlamaDecoder.step = asks_for_a_number
for _ in range(2):  # the second engine does not try
    replies = DecodeEngine(model, -1, 8).generate(prompts, params)
    assert [reply.ids for reply in replies] == [reply.ids for reply in expected]
assert torch.cuda.current_stream() == stream
assert torch.rand(3, device=device).max().item() < 1
"""


def test_a_step_that_cannot_be_recorded_leaves_the_gpu_working(policy_dir):
    # In a process of its own: nothing is recorded any more after a recording that failed.
    command = [sys.executable, "-c", CANNOT_RECORD, str(policy_dir), DEVICE.type]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("could not be recorded") == 2
    assert ended.stderr.count("an earlier recording in this process") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_trees_have_the_scores_and_gradients_of_plain_sequences_on_the_cpu(name):
    found = []
    for device in (CPU, DEVICE):
        model = small_model(name).to(device)
        assert can_pack(model.config)
        if device == DEVICE:
            trees = pair_trees(BATCH, NO_LIMIT, hidden_size=HIDDEN)
            back = torch.tensor([i for tree in trees for i in tree.pairs], device=device).argsort()
            better, worse = (scores[back] for scores in tree_scores(model, trees, device))
        else:
            better, worse = pair_scores(model, BATCH, PAD, device)
        preference_loss(better, worse).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((torch.stack([better, worse]).detach().cpu(), gradient.cpu()))
    (scores, gradient), (gpu_scores, gpu_gradient) = found
    assert torch.allclose(scores, gpu_scores, rtol=0, atol=SCORE_TOLERANCE)
    assert (gradient - gpu_gradient).norm() < RELATIVE_GRADIENT * gradient.norm()


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_ppo_starts_exactly_and_learns(train, precision):
    out = train(iterations=15, precision=precision, device=DEVICE.type, prompts_per_iteration=64, minibatch_replies=32)
    lines, numbers = metrics(out), results(out)
    assert (lines[0]["objective/kl"], lines[0]["val/ratio_first"], lines[5]["val/ratio_first"]) == (0.0, 1.0, 1.0)
    assert numbers["score_end"] > numbers["score_start"] + 1.0
    assert numbers["sampler_logratio_max"] <= SAMPLER_BOUNDS[precision]
    if peak_flops(DEVICE, precision):
        assert all(0 < line["perf/mfu"] < 1 for line in lines)
        assert json.loads((out / "run.json").read_text())["peak_flops"] == peak_flops(DEVICE, precision)


@pytest.mark.parametrize("critic", ["separate", "preference_model"])
def test_a_critic_of_its_own_lies_on_the_gpu_too(train, critic):
    lines = metrics(train(iterations=2, critic=critic, device=DEVICE.type))
    assert [line["val/ratio_first"] for line in lines] == [1.0, 1.0]


def test_the_last_good_weights_do_not_lie_on_the_gpu_and_come_back_to_it():
    model, critic = (torch.nn.Linear(2, 2).to(DEVICE) for _ in range(2))
    good = LastGood.now(model, critic, SimpleNamespace(state={"step": torch.ones(1, device=DEVICE)}), 0, whole=True)
    kept = [*good.policy.values(), *good.critic.values(), good.learner["step"]]
    assert {tensor.device.type for tensor in kept} == {"cpu"}
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    restore(model, good.policy)
    assert torch.equal(model.weight, before)


def test_qwen2_is_trained_too(train, qwen2_policy_dir, tmp_path):
    scorer = write_scorer(qwen2_policy_dir, tmp_path / "scorer")
    numbers = results(train(iterations=2, initial=qwen2_policy_dir, scorer=scorer, device=DEVICE.type))
    assert numbers["kl_nats"] != 0.0
    assert numbers["sampler_logratio_max"] <= SAMPLER_BOUNDS["float32"]


def test_interrupted_training_continues_where_it_was(train, monkeypatch):
    settings = {"iterations": 4, "checkpoint_every": 2, "device": DEVICE.type}
    whole = results(train("whole", **settings))
    learn = PolicyLearner.learn

    def dies(self, iteration, *args):
        if iteration == 3:
            raise KeyboardInterrupt
        return learn(self, iteration, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyLearner, "learn", dies)
        with pytest.raises(KeyboardInterrupt):
            train("killed", **settings)
    again = results(train("killed", **settings))
    assert again["optimiser_steps"] == whole["optimiser_steps"]
    # Sums on a GPU may come out in another order, so that bytes may differ and the curve hardly.
    scores = [[point["score"] for point in numbers["curve"]] for numbers in (whole, again)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_preference_model_learns_and_scores_as_on_the_cpu(policy_dir, tmp_path, precision):
    comparisons = write_comparison_set(tmp_path / "set", polite_comparisons(400, 100))
    spec = {
        "job": "train_preference_model",
        "inputs": {"initial": str(policy_dir), "comparisons": str(comparisons)},
        "settings": {"batch_pairs": 16, "learning_rate": 2e-3, "precision": precision},
        "device": DEVICE.type,
    }
    (tmp_path / "out").mkdir()
    train_preference_model(Job(spec, tmp_path / "out"))
    result: Path = tmp_path / "out" / "result"
    held_out = json.loads((result / "results.json").read_text())["held_out"]
    assert held_out["accuracy"] > 0.9
    dialogue = [{"role": "user", "content": "Please."}, {"role": "assistant", "content": "thank you one two"}]
    here, there = (PreferenceModel.load(result, device).score([dialogue])[0] for device in (CPU, DEVICE))
    assert here == pytest.approx(there, abs=SCORE_TOLERANCE)
