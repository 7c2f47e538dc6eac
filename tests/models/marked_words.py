"""A tiny world whose right answer is known: a reply is the better, the more of its tokens contain the letter e.

`write_scorer` builds a preference model whose weights are written by hand to say just that; `write_prompts` a
prompt set. Used by test_train_policy.py and test_evaluate.py.
"""

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaConfig, LlamaForSequenceClassification

from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.sampling.engine import DecodeEngine, SamplingParams

GAIN = 0.05
POINTS = 10.0  # score of a dialogue all of whose tokens are marked, before the norm bends it
REQUESTS = [
    "Hello, how are you?",
    "What is three plus four?",
    "Please tell me the capital of France.",
    "Could you write the numbers from one to ten?",
    "Hi.",
    "Say one or two words, thank you.",
]


def is_marked(chat: ChatFormat, token_id: int) -> bool:
    return "e" in chat.decode([token_id])


def marked_share(chat: ChatFormat, ids: list[int]) -> float:
    return sum(is_marked(chat, token_id) for token_id in ids) / len(ids)


def write_scorer(initial: Path, folder: Path, *, sign: float = 1.0) -> Path:
    """A one-layer Llama that scores a dialogue by its share of marked tokens.

    Channel 0 of an embedding is 1 for marked tokens, channel 1 is 1 for all. Queries and keys are zero, so that
    attention averages over the dialogue; values pick channel 0, which the norm has doubled where it is 1
    (1 / sqrt((1 + 1) / 8) = 2). At the end-of-context id channel 0 holds 2 * GAIN * share beside a channel 1 of 1,
    whose norm divides by about sqrt(1 / 8).
    """
    chat = ChatFormat.load(initial)
    config = LlamaConfig(
        # A policy may have more rows than its tokenizer has ids, and an untrained one says them too.
        vocab_size=AutoConfig.from_pretrained(initial).vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=chat.pad_id,
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.zero_()
        embedding = model.model.embed_tokens.weight
        embedding[:, 1] = 1.0
        for token_id in range(chat.vocab_size):
            embedding[token_id, 0] = float(is_marked(chat, token_id))
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, 0] = 1.0
        attention.o_proj.weight[0, 0] = GAIN
        model.score.weight[0, 0] = sign * POINTS / (2 * GAIN * 8**0.5)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    chat.copy_to(folder)
    return folder


def write_prompts(folder: Path, per_split: int = 12) -> Path:
    """A prompt set: every third prompt harmless, the same number of prompts in both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for split in ("train", "held_out"):
            for number in range(per_split):
                kind = "harmless" if number % 3 == 2 else "helpful"
                text = f"{REQUESTS[number % len(REQUESTS)]} {number}"
                name = hashlib.sha256(f"{split} {text}".encode()).hexdigest()[:16]
                messages = [{"role": "user", "content": text}]
                file.write(json.dumps({"id": name, "kind": kind, "split": split, "messages": messages}) + "\n")
    return folder


def share_of_marked_tokens(policy, count=200):
    """Mean share of marked tokens in replies of a model folder to one prompt."""
    chat = ChatFormat.load(policy)
    model = load_causal_lm(policy)
    prompt = chat.encode([{"role": "user", "content": "Hello, how are you?"}], reply=True)
    engine = DecodeEngine(model, chat.eos_id, max_slots=count)
    replies = engine.generate([prompt] * count, [SamplingParams(8, seed=10_000 + i) for i in range(count)])
    return sum(marked_share(chat, reply.ids) for reply in replies) / count
