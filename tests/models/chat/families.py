"""Tokenizers and chat templates of many families, tiny: what published folders look like."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.chat.tokenizer import train_tokenizer
from tests.models.tiny_folders import CHATML, LLAMA3, TEXT, byte_level_bpe

LLAMA2 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
THINKING = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- set text = message['content'].split('</think>')[-1] %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + text + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MARKED = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{- message['content'] + '<|im_end|>\n' }}"
    "{%- endgeneration %}{%- else %}{{- message['content'] + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def own() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXT, 400)


def llama3() -> PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _fast(byte_level_bpe(special), LLAMA3, bos_token="<s>", eos_token="</s>")


def qwen2() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _fast(byte_level_bpe(special), CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def thinking() -> PreTrainedTokenizerFast:
    """Like Qwen3: its thinking marks are added tokens that are not marked special."""
    tokenizer = byte_level_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>"])
    return _fast(tokenizer, THINKING, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama2() -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE: spaces as "▁", one put before the text, bytes as fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator([*TEXT, "[INST] [/INST] < > / s"], trainer)
    # Pieces never reach over a space, but published folders say so by their merges alone; and there the bytes
    # are ordinary pieces, not added tokens.
    tokenizer.pre_tokenizer = None
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    return _fast(Tokenizer.from_str(json.dumps(state)), LLAMA2, bos_token="<s>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece unigram whose model holds "</s>" as an ordinary piece too."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("▁", -3.0)]
    pieces += [(letter, -4.0) for letter in sorted(set("".join(TEXT)) | set("</>|[]_INSTuserbot:\n") - {" "})]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return _fast(tokenizer, LLAMA2, bos_token="<s>", eos_token="</s>")


def mistral() -> PreTrainedTokenizerFast:
    """SentencePiece unigram that marks the first word of a whole text alone."""
    fast = unigram()
    state = json.loads(fast.backend_tokenizer.to_str())
    state["pre_tokenizer"]["prepend_scheme"] = "first"
    return _fast(Tokenizer.from_str(json.dumps(state)), LLAMA2, bos_token="<s>", eos_token="</s>")


def phi3() -> PreTrainedTokenizerFast:
    """Control tokens that take the white space behind them with them, and one the white space before it."""
    tokenizer = byte_level_bpe(["<|endoftext|>"])
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", rstrip=True) for name in ("user", "assistant", "system")])
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True, lstrip=True)])
    return _fast(tokenizer, PHI3, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def smollm3() -> PreTrainedTokenizerFast:
    """A template that marks what the assistant writes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _fast(byte_level_bpe(special), MARKED, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def gpt_neox() -> PreTrainedTokenizerFast:
    """GPT-NeoX: no template, no pad token, runs of spaces as added tokens."""
    tokenizer = byte_level_bpe(["<|endoftext|>", "<|padding|>"])
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    return _fast(tokenizer, None, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def plain_text() -> PreTrainedTokenizerFast:
    """Roles in words, byte-level: the space after "Assistant:" belongs to the reply."""
    template = (
        "{%- for message in messages %}"
        "{{- '\\n\\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[message['role']] }}"
        "{{- ': ' + message['content'] + (eos_token if message['role'] == 'assistant' else '') }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '\\n\\nAssistant:' }}{%- endif %}"
    )
    return _fast(byte_level_bpe(["<s>", "</s>", "<pad>"]), template, eos_token="</s>", pad_token="<pad>")


def _fast(tokenizer: Tokenizer, template: str | None, **tokens: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
    fast.chat_template = template
    return fast


FAMILIES = {
    maker.__name__: maker
    for maker in (own, llama3, qwen2, thinking, llama2, unigram, mistral, phi3, smollm3, gpt_neox, plain_text)
}
