"""Tiny models as folders: as somebody would publish them, with random weights, and prepared as initial policies."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from models.jobs import prepare_policy
from models.runtime.job import Job

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
