"""An initial policy out of published folders: what is kept, what is added, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from models.chat.format import ChatFormat
from models.jobs import prepare_policy
from models.runtime.job import Job, JobError
from tests.models.tiny_folders import byte_level_bpe, prepare

SUM_TOLERANCE = 1e-6


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_llama_keeps_its_weights_and_gains_an_end_of_context(llama_dir: Path, tmp_path: Path) -> None:
    folder = prepare(llama_dir, tmp_path / "out")
    assert results_of(folder)["added_tokens"] == ["<|score|>"]
    assert results_of(folder)["added_template"] is False
    before, after = load_file(llama_dir / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    chat = ChatFormat.load(folder)
    for name, old in before.items():
        changed = (old != after[name]).reshape(len(old), -1).any(dim=1).nonzero().flatten().tolist()
        assert changed == ([chat.score_id] if name in ("model.embed_tokens.weight", "lm_head.weight") else []), name
    # Its embedding is the mean over the tokenizer's old ids.
    mean = before["lm_head.weight"][: chat.score_id].mean(dim=0)
    assert torch.allclose(after["lm_head.weight"][chat.score_id], mean, atol=SUM_TOLERANCE)
    tokens = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens([chat.eos_id, chat.pad_id])
    assert tokens == ["<|eot_id|>", "<pad>"]


def test_missing_pad_token_is_added_apart_from_the_end_of_turn(llama_without_pad_dir: Path, tmp_path: Path) -> None:
    folder = prepare(llama_without_pad_dir, tmp_path / "out")
    assert results_of(folder)["added_tokens"] == ["<|pad|>", "<|score|>"]
    chat = ChatFormat.load(folder)
    assert len({chat.pad_id, chat.eos_id, chat.score_id}) == 3
    config = json.loads((folder / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"]) == (chat.pad_id, chat.eos_id)
    generation = json.loads((folder / "generation_config.json").read_text())
    # Its publisher ends texts with </s>, the template turns with <|eot_id|>: a reply is over at either.
    assert (generation["pad_token_id"], generation["eos_token_id"]) == (chat.pad_id, [chat.eos_id, 1])
    assert results_of(folder)["stop_tokens"] == ["</s>", "<|eot_id|>"]
    assert chat.stop_ids == {chat.eos_id, 1}


def test_missing_template_becomes_ours_with_embeddings_of_what_the_roles_mean(
    llama_without_template_dir: Path, tmp_path: Path
) -> None:
    folder = prepare(llama_without_template_dir, tmp_path / "out")
    assert results_of(folder)["added_tokens"] == ["<|system|>", "<|user|>", "<|assistant|>", "<|score|>"]
    assert results_of(folder)["added_template"] is True
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<s><|user|>Hi</s>"
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    words = tokenizer("\n\nHuman:", add_special_tokens=False).input_ids
    user_id = tokenizer.convert_tokens_to_ids("<|user|>")
    assert torch.allclose(table[user_id], table[words].mean(dim=0), atol=SUM_TOLERANCE)


def test_bfloat16_qwen2_becomes_float32_and_stays_tied(qwen2_dir: Path, tmp_path: Path) -> None:
    folder = prepare(qwen2_dir, tmp_path / "out")
    before, after = load_file(qwen2_dir / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(after[name], before[name].float())
    assert "lm_head.weight" not in after
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # 528 rows already held more than the tokenizer's ids, the new one included.
    assert results_of(folder)["embedding_rows"] == results_of(folder)["embedding_rows_before"] == 528


def test_gpt_neox_without_room_gets_more_embeddings(tmp_path: Path) -> None:
    source = tmp_path / "neox"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(["<|endoftext|>"]), eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    GPTNeoXForCausalLM(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    folder = prepare(source, tmp_path / "out")
    assert results_of(folder)["embedding_rows"] == len(tokenizer) + 5  # three roles, pad and score
    chat = ChatFormat.load(folder)
    ids = torch.tensor([chat.score_ids([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])])
    logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert logits.shape[-1] == len(tokenizer) + 5
    # Old ids keep their logits (summed in another order): the rest of the model did not change.
    old = GPTNeoXForCausalLM.from_pretrained(source, dtype=torch.float32)(ids[:, :1] * 0).logits[0, 0]
    new = AutoModelForCausalLM.from_pretrained(folder)(ids[:, :1] * 0).logits[0, 0]
    assert torch.allclose(old, new[: len(old)], atol=SUM_TOLERANCE)


@pytest.mark.parametrize("fixture", ["policy_dir", "qwen2_policy_dir"])
def test_preparing_twice_changes_nothing(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    first: Path = request.getfixturevalue(fixture)
    second = prepare(first, tmp_path / "out")
    assert results_of(second)["added_tokens"] == []
    for path in first.iterdir():
        if path.name not in ("results.json", "README.md"):
            assert (second / path.name).read_bytes() == path.read_bytes(), path.name


def test_same_source_gives_the_same_bytes(qwen2_dir: Path, qwen2_policy_dir: Path, tmp_path: Path) -> None:
    again = prepare(qwen2_dir, tmp_path / "out")
    for path in qwen2_policy_dir.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("fixture", ["policy_dir", "qwen2_policy_dir"])
def test_policy_carries_a_scalar_head(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    chat = ChatFormat.load(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    ids = chat.score_ids([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    padded = torch.tensor([ids + [chat.pad_id] * 3, [chat.pad_id] * 3 + ids])
    mask = padded != chat.pad_id
    scores = model(padded[:1], attention_mask=mask[:1]).logits
    assert scores.shape == (1, 1)
    # transformers reads the score where we mean it: at the end-of-context id, before the padding.
    assert torch.allclose(scores, model(torch.tensor([ids])).logits, atol=1e-5)


def test_card_names_the_control_tokens(qwen2_policy_dir: Path) -> None:
    card = (qwen2_policy_dir / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\ntags:\n- rlhf\n- initial-policy\n---\n\n# Initial policy\n"
    )
    assert "| end of turn | `<\\|im_end\\|>` |" in card


@pytest.fixture
def broken(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "broken"))


def prepare_broken(folder: Path) -> None:
    prepare_policy.run(Job({"inputs": {"source": str(folder)}}, folder.parent))


def test_folder_without_config_is_refused(broken: Path) -> None:
    (broken / "config.json").unlink()
    with pytest.raises(JobError, match=r"has no config\.json; expected a model folder"):
        prepare_broken(broken)


def test_folder_without_weights_is_refused(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    with pytest.raises(JobError, match=r"has no weights \(\*\.safetensors\)\. Download"):
        prepare_broken(broken)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("bert_of_tomorrow", "transformers can't read"),
        # It has no cache of keys and values to sample through.
        ("mamba", r"Its replies can't be sampled here: AttributeError: 'MambaCausalLMOutput'"),
        ("vit", r"is a 'vit', for which transformers has no language model"),
    ],
)
def test_other_architectures_are_refused(broken: Path, model_type: str, message: str) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    with pytest.raises(JobError, match=message):
        prepare_broken(broken)


def test_damaged_weights_are_refused(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="logits are not finite"):
        prepare_broken(broken)


def test_template_that_drops_replies_is_refused(broken: Path) -> None:
    (broken / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(JobError, match="leaves out"):
        prepare_broken(broken)


def test_tokenizer_of_another_model_is_refused(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"vocab_size": 100, "pad_token_id": None}))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:100].clone()
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="don't belong together"):
        prepare_broken(broken)
