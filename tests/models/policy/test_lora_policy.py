"""PPO with adapters: four roles on one base that nothing changes, exact at the start, learning, resumed to the byte."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from models.backbone import adapters
from models.chat.format import ChatFormat
from models.jobs import train_policy, train_preference_model
from models.model_folders.loading import load_causal_lm
from models.policy.model import Policy
from models.policy.reply_chunks import reply_chunks
from models.policy.roles import Roles
from models.policy.rollout import SAMPLER_BOUNDS
from models.policy.settings import PPOSettings
from models.policy.training import PolicyTraining
from models.preference.model import PreferenceModel, end_scores
from models.runtime.job import Job, JobError
from models.sampling import llama as sampler_llama
from models.sampling.engine import DecodeEngine, SamplingParams
from models.sampling.generic import GenericDecoder
from models.sampling.llama import LlamaDecoder
from tests.folders import contents
from tests.models.adapter_checks import MERGE_TOLERANCE, changed_layers
from tests.models.marked_words import is_marked, share_of_marked_tokens
from tests.models.ppo_runs import LARGER, metrics, ppo_job, results, run_ppo
from tests.models.preference_world import write_comparison_set
from tests.models.sampling.tiny_models import gpt2, llama, neox, qwen2

LORA = {"lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-2}
CRITICS = ("shared", "detached", "separate", "preference_model")
ADAPTED = {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"}
SAMPLER_TOLERANCE = 1e-4


def lovers_of_e(chat: ChatFormat, number: int, seed: int) -> list[dict[str, Any]]:
    """Comparisons of random replies, of which the one with more e is better; every eighth is held out."""
    generator = random.Random(seed)
    sayable = [i for i in range(chat.vocab_size) if i not in chat.control_ids]
    records: list[dict[str, Any]] = []
    while len(records) < number:
        pair = sorted(
            (chat.decode(generator.choices(sayable, k=8)) for _ in range(2)), key=lambda text: text.count("e")
        )
        if pair[0].count("e") == pair[1].count("e"):
            continue
        worse, better = ([{"role": "assistant", "content": text}] for text in pair)
        facts = {"source": "world", "tranche": "base", "question": "helpful", "strength": None, "rater": "r", "turn": 1}
        split = "train" if len(records) % 8 else "held_out"
        prompt = [{"role": "user", "content": "Hello."}]
        identity = {"id": f"{seed}-{len(records):04}", "split": split, "prompt": prompt}
        records.append(identity | facts | {"better": better, "worse": worse})
    return records


def train_scorer(out: Path, initial: Path, seed: int, **settings: Any) -> Path:
    """A preference model of the lovers of e, an adapter unless the settings say otherwise."""
    comparisons = write_comparison_set(out / "set", lovers_of_e(ChatFormat.load(initial), 400, seed))
    spec = {
        "job": "train_preference_model",
        "inputs": {"initial": str(initial), "comparisons": str(comparisons)},
        "settings": {"batch_pairs": 16, "learning_rate": 1e-2, "lora_rank": 4, "lora_alpha": 8.0} | settings,
        "device": "cpu",
    }
    train_preference_model.run(Job(spec, out))
    return out / "result"


@pytest.fixture(scope="module")
def adapter_dir(policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_scorer(tmp_path_factory.mktemp("adapter"), policy_dir, seed=1)


@pytest.fixture(scope="module")
def watcher_dir(policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_scorer(tmp_path_factory.mktemp("watcher"), policy_dir, seed=2)


@pytest.fixture
def inputs(policy_dir: Path, adapter_dir: Path, prompts_dir: Path) -> dict[str, Path]:
    return {"initial": policy_dir, "preference_model": adapter_dir, "prompts": prompts_dir}


@pytest.fixture(autouse=True)
def _as_before():
    yield
    torch.use_deterministic_algorithms(False)


def training_of(out: Path, inputs: dict[str, Path], **settings: Any) -> PolicyTraining:
    job = ppo_job(out, inputs, LORA | settings)
    return PolicyTraining(job, PPOSettings(**job.settings), ChatFormat.load(inputs["initial"]))


def changed_copy(policy_dir: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a policy's folder with its weights changed."""
    shutil.copytree(policy_dir, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def memory_of(module: Any) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


@pytest.mark.parametrize("critic", CRITICS)
def test_all_roles_share_one_base_and_only_adapters_and_heads_learn(inputs, watcher_dir, tmp_path, critic):
    training = training_of(tmp_path, inputs | {"watcher": watcher_dir}, iterations=1, critic=critic)
    policy, reference = training.policy.model, training.collector.reference.model
    scorers = [training.collector.preference_model.model, training.monitor.watcher.model]
    everything = [policy, reference, *scorers, training.critic]
    base = memory_of(reference)
    own = [parameter for module in everything for parameter in module.parameters() if parameter.data_ptr() not in base]
    rank = LORA["lora_rank"]
    heads = set(training.critic.head.parameters()) | {scorer.score.weight for scorer in scorers}
    # Beside the base there are adapters, matrices of rank 4, and heads; and no adapter is held in two roles.
    assert all(rank in parameter.shape for parameter in own if parameter not in heads)
    assert len(own) == len({parameter.data_ptr() for parameter in own})
    own_trunk = critic in ("separate", "preference_model")
    assert len(own) == 2 * 2 * 7 * (3 + own_trunk) + 2 + 4  # layers, A and B, modules; score heads; value head
    learned = {parameter for group in training.learner.optimiser.param_groups for parameter in group["params"]}
    parts = [policy] + ([training.critic.trunk] if own_trunk else [])
    expected = {p for part in parts for _, layer in adapters.adapted_layers(part) for p in adapters._matrices(layer)}
    assert learned == expected | set(training.critic.head.parameters())
    assert all(parameter.requires_grad for parameter in learned)

    before = {id(p): p.detach().clone() for module in everything for p in module.parameters()}
    rollout, chunks = training._rollout(0)
    training.learner.learn(0, rollout, chunks)
    changed = {p for module in everything for p in module.parameters() if not torch.equal(before[id(p)], p)}
    assert changed == learned
    assert all(p.grad is None for module in everything for p in module.parameters() if p not in learned)
    assert training.roles.how_held == {
        "policy": "adapter",
        "reference": "base",
        "preference_model": "adapter",
        "watcher": "adapter",
        "critic": "adapter" if own_trunk else "head",
    }


@pytest.mark.parametrize("critic", CRITICS)
def test_training_starts_at_kl_exactly_zero_and_ratio_exactly_one(inputs, tmp_path, critic):
    first, second = metrics(run_ppo(tmp_path / "run", inputs, LORA | {"iterations": 2, "critic": critic}))
    assert first["objective/kl"] == 0.0
    assert [line["val/ratio_first"] for line in (first, second)] == [1.0, 1.0]
    assert second["objective/kl"] != 0.0
    assert first["val/ratio"] != 1.0
    assert 0 < max(line["sampler/logratio_max"] for line in (first, second)) <= SAMPLER_TOLERANCE


def test_bfloat16_starts_as_exactly(inputs, tmp_path):
    settings = LORA | {"iterations": 2, "precision": "bfloat16", "critic": "preference_model"}
    first, second = metrics(run_ppo(tmp_path / "run", inputs, settings))
    assert first["objective/kl"] == 0.0 != second["objective/kl"]
    assert [line["val/ratio_first"] for line in (first, second)] == [1.0, 1.0]
    assert second["sampler/logratio_max"] <= SAMPLER_BOUNDS["bfloat16"]


def test_the_reference_stays_bitwise_the_initial_policy(inputs, policy_dir, tmp_path):
    training = training_of(tmp_path, inputs, iterations=1)
    rollout, chunks = training._rollout(0)
    training.learner.learn(0, rollout, chunks)
    flat = [chunk for minibatch in chunks for chunk in minibatch]
    shape = tuple(rollout.response_mask.shape)
    read = training.collector.reference.read(flat, shape).logps
    untouched = Policy(load_causal_lm(policy_dir))
    assert torch.equal(read, untouched.read(flat, shape).logps)
    assert not torch.allclose(read, training.policy.read(flat, shape).logps, atol=1e-3)


@pytest.mark.parametrize("make", [llama, qwen2, neox, gpt2])
def test_a_preference_model_on_the_resident_base_scores_as_by_itself(make, tmp_path):
    """Whatever the family; its own model is a classifier around a copy of the base."""
    base = make()
    base.save_pretrained(tmp_path / "initial")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "initial", num_labels=1, dtype=torch.float32)
    lora = adapters.Lora(2, 4.0)
    trunk_sha256 = adapters.digest_of_base(whole.base_model)
    adapters.add_adapter(whole, lora, seed=3)
    with torch.no_grad():
        for _, layer in adapters.adapted_layers(whole):
            layer.lora_B["default"].weight.normal_(std=0.2)
    adapters.save_adapter(whole, tmp_path, "SEQ_CLS", lora, trunk_sha256)
    roles = Roles(tmp_path / "initial", PPOSettings(lora_rank=4), 0, torch.device("cpu"))
    stored = adapters.StoredAdapter.load(tmp_path)
    assert stored.base_sha256 == adapters.digest_of_base(roles.reference.base_model)
    sequences = [[5, 6, 7, 8], [9, 10]]
    with torch.no_grad():
        scores, expected = (
            end_scores(model.eval(), sequences, 0, torch.device("cpu")) for model in (roles._scorer(stored), whole)
        )
    assert torch.allclose(scores, expected, atol=MERGE_TOLERANCE)
    assert scores.abs().min() > 1e-3


def policy_with_a_word_for_e(policy_dir: Path, folder: Path) -> Path:
    """The same policy, whose frozen head has one direction for all marked tokens: an adapter can't give it one."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        chat, head = ChatFormat.load(policy_dir), weights["lm_head.weight"]
        marked = [i for i in range(chat.vocab_size) if is_marked(chat, i)]
        head[marked] += torch.randn(head.shape[1], generator=torch.Generator().manual_seed(0)) * 0.1

    return changed_copy(policy_dir, folder, change)


def test_ppo_with_adapters_learns_what_the_preference_model_likes(inputs, policy_dir, scorer_dir, tmp_path):
    start = policy_with_a_word_for_e(policy_dir, tmp_path / "start")
    inputs |= {"initial": start, "preference_model": scorer_dir}  # whose taste is known
    out = run_ppo(tmp_path / "run", inputs, LARGER | LORA | {"iterations": 12})
    numbers = results(out)
    assert share_of_marked_tokens(out / "result") > share_of_marked_tokens(start) + 0.2
    assert numbers["score_end"] > numbers["score_start"] + 1.0
    assert numbers["trained_parameters"] == 2 * (2 * 512 + 2 * 384 + 3 * 768)  # as in test_lora_preference_model.py
    assert numbers["stopped"] is None


def test_published_policy_is_the_base_with_the_adapter_by_peft(inputs, policy_dir, tmp_path):
    result = run_ppo(tmp_path / "run", inputs, LORA | {"iterations": 2, "snapshots": 1}) / "result"
    assert changed_layers(result, policy_dir) == ADAPTED
    ids = torch.arange(3, 60)[None]
    for folder in (result, result / "snapshots" / "01"):
        base = AutoModelForCausalLM.from_pretrained(policy_dir, dtype=torch.float32)
        with torch.no_grad():
            plain = base(input_ids=ids).logits
            by_peft = PeftModel.from_pretrained(base, folder / "adapter").eval()(input_ids=ids).logits
            published = load_causal_lm(folder)(input_ids=ids).logits
        assert torch.allclose(published, by_peft, atol=MERGE_TOLERANCE)
        assert not torch.allclose(published, plain, atol=1e-2)
        told = json.loads((folder / "adapter" / "base.json").read_text())
        assert told["trunk_sha256"] == adapters.digest_of_base(load_causal_lm(policy_dir).base_model)


def test_rewards_by_the_adapter_are_those_of_the_published_preference_model(inputs, adapter_dir, tmp_path):
    resident = training_of(tmp_path, inputs).collector.preference_model
    published = PreferenceModel.load(adapter_dir)
    dialogues = [
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": text}] for text in ("eee", "oo", "")
    ]
    assert resident.score(dialogues) == pytest.approx(published.score(dialogues), abs=MERGE_TOLERANCE)
    assert resident.offset == published.offset


def another_base(policy_dir: Path, folder: Path) -> Path:
    """The same policy with one number changed."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][0] += 1e-3

    return changed_copy(policy_dir, folder, change)


@pytest.mark.parametrize("held", ["an adapter of another base", "trained whole"])
def test_a_preference_model_that_is_no_adapter_of_this_base_is_held_whole(
    held, inputs, policy_dir, adapter_dir, prompts_dir, tmp_path, capsys
):
    if held == "trained whole":
        inputs["preference_model"] = train_scorer(tmp_path / "pm", policy_dir, 1, lora_rank=0, learning_rate=2e-3)
        reason = "was trained without lora_rank"
    else:
        inputs["initial"] = another_base(policy_dir, tmp_path / "other")
        reason = "is an adapter of another base ("
    out = run_ppo(tmp_path / "run", inputs, LORA | {"iterations": 2, "critic": "preference_model"})
    told = capsys.readouterr().err
    assert told.count(f"note: the preference model {reason}") == 1
    assert "it is held whole beside the initial policy" in told
    roles = results(out)["roles"]
    assert (roles["preference_model"], roles["critic"]) == ("whole", "adapter")
    assert metrics(out)[0]["objective/kl"] == 0.0
    training = training_of(tmp_path / "again", inputs, critic="preference_model")
    trunk = training.critic.trunk
    assert adapters.has_adapter(trunk)
    assert memory_of(training.collector.preference_model.model.base_model) < memory_of(trunk)


def test_a_critic_starts_with_the_preference_models_adapter(inputs, tmp_path):
    training = training_of(tmp_path, inputs, critic="preference_model")
    ours, theirs = (
        dict(adapters.adapted_layers(trunk))
        for trunk in (training.critic.trunk, training.collector.preference_model.model.base_model)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        for mine, its in zip(*(adapters._matrices(layers[name]) for layers in (ours, theirs)), strict=True):
            assert torch.equal(mine, its)
            assert mine.requires_grad
            assert not its.requires_grad


@pytest.mark.parametrize("critic", ["shared", "preference_model"])
def test_interrupted_training_ends_with_the_same_bytes(inputs, watcher_dir, tmp_path, monkeypatch, critic):
    settings = LORA | {"iterations": 5, "checkpoint_every": 2, "snapshots": 1, "critic": critic}
    inputs = inputs | {"watcher": watcher_dir}
    whole = run_ppo(tmp_path / "whole", inputs, settings)
    log = Job.log

    def interrupted(self, step, **numbers):
        if step == 4:
            raise KeyboardInterrupt
        log(self, step, **numbers)

    monkeypatch.setattr(Job, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ppo(tmp_path / "killed", inputs, settings)
    monkeypatch.undo()
    state = torch.load(tmp_path / "killed" / "checkpoint" / "state.pt", weights_only=True)["state"]
    assert all("lora_" in name for policy in (state["policy"], state["good"]["policy"]) for name in policy)
    assert all("lora_" in name or name.startswith("head.") for name in state["critic"])
    killed = run_ppo(tmp_path / "killed", inputs, settings)
    assert json.loads((killed / "run.json").read_text())["resumed_at_step"] == 2
    assert contents(killed / "result") == contents(whole / "result")
    assert "snapshots/01/adapter/adapter_model.safetensors" in contents(whole / "result")


def test_a_stopped_run_goes_back_to_the_last_good_adapter(inputs, tmp_path):
    limited = run_ppo(tmp_path / "limited", inputs, LORA | {"iterations": 12, "max_kl_nats": 1.0})
    learned = len(results(limited)["curve"])
    assert "above max_kl_nats 1" in results(limited)["stopped"]
    assert 2 <= learned < 12
    shorter = run_ppo(tmp_path / "shorter", inputs, LORA | {"iterations": learned - 1})
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (limited / "result" / name).read_bytes() == (shorter / "result" / name).read_bytes()


def test_while_the_critic_warms_up_the_adapter_stays_as_it_was(inputs, tmp_path):
    lines = metrics(run_ppo(tmp_path / "run", inputs, LORA | {"iterations": 3, "critic_warmup_iterations": 1}))
    assert [line["objective/kl"] == 0.0 for line in lines] == [True, True, False]


def test_unknown_layers_are_refused_before_anything_is_sampled(inputs, tmp_path):
    with pytest.raises(JobError, match="lora_layers names q; the linear layers of this LlamaModel are down_proj"):
        train_policy.run(ppo_job(tmp_path, inputs, LORA | {"lora_layers": ["q"]}))
    with pytest.raises(JobError, match="lora_alpha is -1"):
        train_policy.run(ppo_job(tmp_path, inputs, LORA | {"lora_alpha": -1.0}))


SAMPLED = {
    "llama": (llama, LlamaDecoder, True),
    "llama, too large to join": (llama, LlamaDecoder, False),
    "qwen2": (qwen2, LlamaDecoder, True),
    "qwen2, too large to join": (qwen2, LlamaDecoder, False),
    "gpt_neox": (neox, GenericDecoder, True),
    "gpt2": (gpt2, GenericDecoder, True),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_sampler_says_what_the_trainer_reads_with_an_adapter_that_does_something(name, monkeypatch):
    make, decoder, join = SAMPLED[name]
    monkeypatch.setattr(sampler_llama, "JOIN_BELOW_PARAMETERS", 50_000_000 if join else 0)
    base = make()
    model = adapters.add_adapter(adapters.sharing(base), adapters.Lora(3, 6.0), seed=1)
    engine = DecodeEngine(model, eos_id=1)
    assert isinstance(engine._decoder, decoder)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapters.adapted_layers(model):
            b = layer.lora_B["default"].weight
            b.copy_(torch.randn(b.shape, generator=generator) * 0.2)
    engine.sync()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    replies = engine.generate(prompts, [SamplingParams(8, seed=i) for i in range(3)])
    chunks = reply_chunks(prompts, [reply.ids for reply in replies], range(3), width=8, pad_id=0, chunk_tokens=100)
    with_adapter, without = (Policy(each).read(chunks, (3, 8)).logps for each in (model, base))
    for row, reply in enumerate(replies):
        said = torch.tensor(reply.logprobs)
        assert torch.allclose(said, with_adapter[row, : len(said)], atol=SAMPLER_TOLERANCE)
        assert not torch.allclose(said, without[row, : len(said)], atol=0.01)
    if not join:
        # A large model's weights are sampled from where they are.
        decoding = engine._decoder._layers[0]
        assert decoding.out.weight.data_ptr() == base.model.layers[0].self_attn.o_proj.weight.data_ptr()
