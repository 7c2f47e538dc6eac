"""Preference models trained as adapters: what is published is plain, the base stays as it was, and nothing is lost."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, GPT2Config

from models.backbone import adapters
from models.chat.format import ChatFormat
from models.jobs import train_preference_model
from models.preference.model import PreferenceModel, fresh_preference_model
from models.runtime.job import Job, JobError
from tests.folders import contents
from tests.models.adapter_checks import MERGE_TOLERANCE, changed_layers
from tests.models.preference.tree_world import small_model
from tests.models.preference_world import polite_comparisons, write_comparison_set

LORA = {"lora_rank": 4, "lora_alpha": 8.0}
SETTINGS = {"batch_pairs": 16, "learning_rate": 1e-2}


def start(out: Path, initial: Path, comparisons: Path, **settings: Any) -> Job:
    spec = {
        "job": "train_preference_model",
        "inputs": {"initial": str(initial), "comparisons": str(comparisons)},
        "settings": SETTINGS | LORA | settings,
        "device": "cpu",
    }
    out.mkdir(parents=True, exist_ok=True)
    return Job(spec, out)


def train(out: Path, initial: Path, comparisons: Path, **settings: Any) -> Path:
    train_preference_model.run(start(out, initial, comparisons, **settings))
    return out / "result"


def small(architecture: str) -> Any:
    if architecture != "gpt2":
        return small_model(architecture)
    config = GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0)
    return AutoModelForSequenceClassification.from_config(config)


@pytest.fixture(scope="module")
def comparisons_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison_set(tmp_path_factory.mktemp("set") / "set", polite_comparisons(200, 60))


@pytest.fixture(scope="module")
def lora_dir(policy_dir: Path, comparisons_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("pm") / "out", policy_dir, comparisons_dir)


def test_it_learns_with_a_few_weights_and_says_which(lora_dir):
    results = json.loads((lora_dir / "results.json").read_text())
    assert results["held_out"]["accuracy"] > 0.85
    # Rank 4, hidden 64, MLP 128, keys and values of 32: q and o 4·(64 + 64), k and v 4·(64 + 32), three of the MLP
    # 4·(64 + 128); two layers of them, and a head of 64.
    assert results["lora"]["trained_parameters"] == 2 * (2 * 512 + 2 * 384 + 3 * 768) + 64
    assert results["lora"]["layers"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    weights = load_file(lora_dir / "model.safetensors")
    assert results["num_parameters"] == sum(tensor.numel() for tensor in weights.values())


def test_only_layers_with_an_adapter_and_the_head_differ_from_the_initial_policy(lora_dir, policy_dir):
    adapted = {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"}
    assert changed_layers(lora_dir, policy_dir) == adapted
    ours, initial = (load_file(folder / "model.safetensors").keys() for folder in (lora_dir, policy_dir))
    assert ours - initial == {"score.weight"}


def test_published_weights_score_as_the_adapter_on_its_base_by_peft(lora_dir, policy_dir):
    """peft itself reads the adapter, onto a head that is drawn anew, so that the stored one is seen to be used."""
    base = AutoModelForSequenceClassification.from_pretrained(policy_dir, num_labels=1, dtype=torch.float32)
    chat = ChatFormat.load(lora_dir)
    base.config.pad_token_id = chat.pad_id
    by_peft = PeftModel.from_pretrained(base, lora_dir / "adapter").eval()
    published = PreferenceModel.load(lora_dir)
    dialogues = [
        [{"role": "user", "content": "Please tell me one"}, {"role": "assistant", "content": text}]
        for text in ("two thank you three", "seven", "four five")
    ]
    sequences = [chat.score_ids(messages) for messages in dialogues]
    with torch.no_grad():
        expected = [by_peft(input_ids=torch.tensor([ids])).logits.item() for ids in sequences]
    assert published.score(dialogues) == pytest.approx(expected, abs=MERGE_TOLERANCE)
    assert published.score(dialogues)[0] > published.score(dialogues)[1]


def test_adapter_names_its_base_and_nothing_of_where_it_was_trained(lora_dir, policy_dir):
    assert sorted(path.name for path in (lora_dir / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    model = fresh_preference_model(policy_dir, ChatFormat.load(policy_dir), 0, torch.device("cpu"))
    base = json.loads((lora_dir / "adapter" / "base.json").read_text())
    assert base == {"format": 1, "trunk_sha256": adapters.digest_of_base(model.base_model)}
    with torch.no_grad():
        next(model.base_model.parameters())[0, 0] += 1e-3
    assert adapters.digest_of_base(model.base_model) != base["trunk_sha256"]
    assert str(lora_dir.parent).encode() not in b"".join(contents(lora_dir).values())


def test_interrupted_training_ends_with_the_same_bytes(lora_dir, policy_dir, comparisons_dir, tmp_path, monkeypatch):
    job = start(tmp_path / "out", policy_dir, comparisons_dir, checkpoint_every=4)
    whole = train(tmp_path / "whole", policy_dir, comparisons_dir, checkpoint_every=4)
    log = Job.log

    def interrupted(self, step, **numbers):
        if step == 7:
            raise KeyboardInterrupt
        log(self, step, **numbers)

    monkeypatch.setattr(Job, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_preference_model.run(job)
    monkeypatch.undo()
    state = torch.load(tmp_path / "out" / "checkpoint" / "state.pt", weights_only=True)["state"]["model"]
    assert all("lora_" in name or name == "score.weight" for name in state)
    torch.randn(7)
    resumed = train(tmp_path / "out", policy_dir, comparisons_dir, checkpoint_every=4)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["resumed_at_step"] == 4
    assert contents(resumed) == contents(whole)
    assert (whole / "model.safetensors").read_bytes() == (lora_dir / "model.safetensors").read_bytes()


def test_chosen_layers_alone_get_an_adapter(policy_dir, comparisons_dir, tmp_path):
    result = train(tmp_path / "out", policy_dir, comparisons_dir, lora_layers=["q_proj", "v_proj"])
    assert changed_layers(result, policy_dir) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": -1}, "lora_rank is -1; expected at least 0"),
        ({"lora_alpha": 0.0}, "lora_alpha is 0.0; expected more than 0"),
        ({"lora_rank": 0, "lora_layers": ["q_proj"]}, "lora_layers is .'q_proj'. with lora_rank 0"),
        (
            {"lora_layers": ["q_prj"]},
            "names q_prj; the linear layers of this LlamaModel are down_proj, gate_proj",
        ),
    ],
)
def test_what_makes_no_adapter_is_refused(settings, message, policy_dir, comparisons_dir, tmp_path):
    with pytest.raises(JobError, match=message):
        train(tmp_path / "out", policy_dir, comparisons_dir, **settings)


def test_missing_peft_is_said_before_any_work(policy_dir, comparisons_dir, tmp_path, monkeypatch):
    importing = builtins.__import__

    def without_peft(name, *args):
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return importing(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    job = start(tmp_path / "out", policy_dir, comparisons_dir)
    # Reading the initial policy would fail: nothing is read.
    shutil.copytree(policy_dir, tmp_path / "empty", ignore=lambda *_: ["config.json", "model.safetensors"])
    job.inputs["initial"] = tmp_path / "empty"
    with pytest.raises(JobError, match=r"pip install 'peft>=0\.18'"):
        train_preference_model.run(job)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_a_merged_model_computes_what_its_adapter_adds(architecture):
    """Whatever the family calls its layers; the model with the adapter stays as it is, and its base too."""
    torch.manual_seed(0)
    base = small(architecture).eval()
    ids = torch.arange(12)[None] + 3
    with torch.no_grad():
        before = base(input_ids=ids).logits
        drawn = torch.get_rng_state()
        model = adapters.add_adapter(adapters.sharing(base), adapters.Lora(2, 4.0), seed=1)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert torch.equal(model(input_ids=ids).logits, before)
        for _, layer in adapters.adapted_layers(model):
            layer.lora_B["default"].weight.normal_(std=0.3)
        with_adapter = model(input_ids=ids).logits
        assert not torch.allclose(with_adapter, before, atol=1e-2)
        assert torch.allclose(adapters.merged(model)(input_ids=ids).logits, with_adapter, atol=MERGE_TOLERANCE)
        assert torch.equal(model(input_ids=ids).logits, with_adapter)
        assert torch.equal(base(input_ids=ids).logits, before)
    shared = {p.data_ptr() for p in base.parameters()}
    own = [p for p in model.parameters() if p.data_ptr() not in shared]
    assert all(p.requires_grad for p in own)
    assert sum(p.requires_grad for p in model.parameters()) == len(own) == 2 * len(list(adapters.adapted_layers(model)))
