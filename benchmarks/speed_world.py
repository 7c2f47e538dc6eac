"""What the speed benchmarks share: models with random weights, prompts of chosen lengths, clocks, peaks of the machine.

A word is a token here, so that a text of sampled ids is encoded to the same ids again and both sides of a comparison
read equally many tokens.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from models.chat.format import ChatFormat
from models.chat.tokenizer import END, PAD, ROLES, SCORE, default_template, write_chat_files

CONTEXT = 2048

transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Size:
    """A Llama with random weights; the default is the demo's model (0.9 M parameters)."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 256
    vocabulary: int = 1024

    def config(self, **more: Any) -> LlamaConfig:
        """Untied embeddings, as most published models have them."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            **more,
        )


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Control tokens first, then the words w0, w1, ... up to `vocabulary` ids."""
    special = [PAD, END, SCORE, *ROLES]
    names = [*special, *(f"w{i}" for i in range(vocabulary - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = default_template(END)
    return fast


def write_world(folder: Path, size: Size, prompt_tokens: list[int], seed: int = 0) -> ChatFormat:
    """An initial policy, a preference model and a prompt set, as the PPO job reads them, below `folder`."""
    torch.manual_seed(seed)
    chat = write_chat_files(word_tokenizer(size.vocabulary), folder / "initial")
    ids = {"pad_token_id": chat.pad_id, "eos_token_id": chat.eos_id, "bos_token_id": None}
    LlamaForCausalLM(size.config(**ids)).save_pretrained(folder / "initial")
    LlamaForSequenceClassification(size.config(num_labels=1, **ids)).save_pretrained(folder / "preference_model")
    chat.copy_to(folder / "preference_model")
    words = np.random.default_rng(seed).integers(0, size.vocabulary - 6, size=(len(prompt_tokens), max(prompt_tokens)))
    # The template adds three ids: the user's, the end of the turn, the assistant's.
    dialogues = [
        " ".join(f"w{word}" for word in row[: count - 3]) for row, count in zip(words, prompt_tokens, strict=True)
    ]
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    with (folder / "prompts" / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(dialogues):
            message = {"role": "user", "content": text}
            record = {"id": f"{number:06d}", "kind": "helpful", "split": "train", "messages": [message]}
            file.write(json.dumps(record) + "\n")
            count = len(chat.encode([message], reply=True))  # type: ignore[list-item]
            assert count == prompt_tokens[number], (
                f"prompt {number} has {count} tokens, expected {prompt_tokens[number]}"
            )
    return chat


def uneven(count: int, low: int, high: int, seed: int) -> list[int]:
    """Lengths between `low` and `high` whose logarithms are spread evenly, in a random order.

    Many short and few long ones, as prompts and replies are; their mean is about (high - low) / ln(high / low).
    """
    spread = np.exp(np.linspace(np.log(low), np.log(high), count)).round().astype(int)
    return [int(x) for x in np.random.default_rng(seed).permutation(spread)]


def cpu_seconds() -> float:
    """CPU seconds of this process so far, all its threads and the kernel's work for it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock:
    """Seconds since it was made: CPU seconds of this process on a CPU, seconds on the wall on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.began = self._now()

    def seconds(self) -> float:
        """Since the clock was made; on a GPU, once it has done its work."""
        return self._now() - self.began

    def _now(self) -> float:
        if self.gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return cpu_seconds()


def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bfloat16: the hardware for which bf16 rows have targets."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches in the simplest programs: one large matrix product, one large copy."""

    flops: float  # per second
    bytes: float  # read and written per second


def measured_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Best of five; the copy is larger than the caches of a CPU core."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    long = torch.zeros(2**26 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(long)
    product_s, copy_s = [], []
    for _ in range(5):
        clock = Clock(device)
        torch.matmul(a, b)
        product_s.append(clock.seconds())
        clock = Clock(device)
        target.copy_(long)
        copy_s.append(clock.seconds())
    return Peaks(2 * side**3 / min(product_s), 2 * long.nbytes / min(copy_s))
