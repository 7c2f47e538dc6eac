"""Tiny models for the tests of models/: built from a config, prepared as policies, once per session."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from models.jobs import prepare_policy
from models.runtime.job import Job
from tests.models.marked_words import write_prompts, write_scorer
from tests.models.ppo_runs import run_ppo

HIDDEN = 64
TEXT = [
    "Hello, how are you today? I am fine, thank you. What is three plus four? Three plus four is seven.",
    "Please tell me the capital of France. The capital of France is Paris. I can't help with that, sorry.",
    "Could you write the numbers from one to ten? one two three four five six seven eight nine ten",
]
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}"
    "{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def byte_level_bpe(special: list[str], vocab_size: int = 512) -> Tokenizer:
    """A byte-level BPE tokenizer trained on a few sentences; `special` get the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def write_llama(folder: Path, *, template: str | None, pad: bool = True, seed: int = 0, hidden: int = HIDDEN) -> Path:
    """A Llama folder with random weights as somebody would publish it (not yet prepared)."""
    special = ["<s>", "</s>"]
    if template is not None:
        special += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    if pad:
        special += ["<pad>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(special),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
    )
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=special.index("<pad>") if pad else None,
        initializer_range=0.1,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_qwen2(folder: Path, seed: int = 0) -> Path:
    """A Qwen2 folder with random weights, tied embeddings and a default system prompt in its template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(special), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    config = Qwen2Config(
        vocab_size=528,  # like the published ones: more rows than the tokenizer has ids
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=None,
        initializer_range=0.1,
        dtype="bfloat16",
    )
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepare(source: Path, out: Path) -> Path:
    """The folder prepared as an initial policy, by the job itself."""
    job = Job({"job": "prepare_policy", "inputs": {"source": str(source)}}, out)
    out.mkdir(parents=True, exist_ok=True)
    prepare_policy.run(job)
    return out / "result"


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Llama with a chat template, not yet prepared."""
    return write_llama(tmp_path_factory.mktemp("llama"), template=LLAMA3)


@pytest.fixture(scope="session")
def llama_without_pad_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Llama whose tokenizer has no pad token."""
    return write_llama(tmp_path_factory.mktemp("llama-no-pad"), template=LLAMA3, pad=False)


@pytest.fixture(scope="session")
def llama_without_template_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Llama (a base model) without a chat template."""
    return write_llama(tmp_path_factory.mktemp("llama-no-template"), template=None)


@pytest.fixture(scope="session")
def qwen2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tiny Qwen2 in bfloat16, not yet prepared."""
    return write_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="session")
def policy_dir(llama_without_template_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny initial policy that most tests use: Llama, hidden 64, 2 layers, our own chat template."""
    return prepare(llama_without_template_dir, tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def qwen2_policy_dir(qwen2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2 as an initial policy."""
    return prepare(qwen2_dir, tmp_path_factory.mktemp("qwen2-policy"))


@pytest.fixture(scope="session")
def scorer_dir(policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preference model that likes marked tokens (marked_words.py)."""
    return write_scorer(policy_dir, tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="session")
def prompts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prompt set of both kinds."""
    return write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def train(policy_dir: Path, scorer_dir: Path, prompts_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Runs PPO in this process: train(name="run", seed=0, device=..., **settings) -> its output directory."""

    def start(  # type: ignore[no-untyped-def]
        name="run", *, seed=0, device="cpu", initial=policy_dir, scorer=scorer_dir, **settings
    ):
        inputs = {"initial": initial, "preference_model": scorer, "prompts": prompts_dir}
        return run_ppo(tmp_path / name, inputs, settings, seed, device)

    yield start
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """Writes a spec.json: write_spec(job, inputs={...}, settings={...}, seed=0) -> its path."""

    def write(job: str, *, inputs: dict[str, Path], seed: int = 0, threads: int = 1, **settings: Any) -> Path:
        spec = {
            "job": job,
            "inputs": {name: str(path) for name, path in inputs.items()},
            "settings": settings,
            "seed": seed,
            "threads": threads,
        }
        path = tmp_path / f"{job}.spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        return path

    return write
