"""Completes a tokenizer so that it can carry dialogues, and writes the files that `ChatFormat` reads.

Used once per initial policy, by `models/jobs/prepare_policy.py` and `models/jobs/pretrain.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.chat.format import CHAT_FILE, ChatFormat, ChatFormatError

PAD, END, SCORE = "<|pad|>", "<|end|>", "<|score|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

_TEMPLATE = (
    "{{%- if bos_token is defined %}}{{{{- bos_token }}}}{{%- endif %}}"
    "{{%- for message in messages %}}"
    "{{{{- '<|' + message['role'] + '|>' + message['content'] + {end!r} }}}}"
    "{{%- endfor %}}"
    "{{%- if add_generation_prompt %}}{{{{- '<|assistant|>' }}}}{{%- endif %}}"
)
_MARKER = "\ue000"


def default_template(end: str) -> str:
    """Our own chat template: a control token per role before the content, `end` after it."""
    return _TEMPLATE.format(end=end)


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with our control tokens and template; it can write any text.

    Little text gives a smaller vocabulary than asked for; 262 (bytes and control tokens) is the least.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, SCORE, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = default_template(END)
    return fast


def complete_tokenizer(tokenizer: Any) -> list[str]:
    """Add the pieces a policy needs and the tokenizer lacks; returns the added tokens in id order.

    A pad token shared with the end of a text is replaced: a mask made from it would hide the end of every
    reply.
    """
    before = len(tokenizer)
    if tokenizer.chat_template is None:
        _add(tokenizer, [*ROLES] if tokenizer.eos_token else [*ROLES, END])
        tokenizer.eos_token = tokenizer.eos_token or END
        tokenizer.chat_template = default_template(tokenizer.eos_token)
    elif isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template["default"]
    if tokenizer.pad_token is None or tokenizer.pad_token in (tokenizer.eos_token, end_of_turn(tokenizer)):
        _add(tokenizer, [PAD])
        tokenizer.pad_token = PAD
    _add(tokenizer, [SCORE])
    return tokenizer.convert_ids_to_tokens(list(range(before, len(tokenizer))))


def _add(tokenizer: Any, tokens: list[str]) -> None:
    added = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(added, special_tokens=True)


def end_of_turn(tokenizer: Any) -> str:
    """The control token that the template writes after a reply, or the tokenizer's end of text.

    Raises:
        ChatFormatError: neither exists, so that a reply would never end; or the template drops replies.
    """
    dialogue = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARKER}]
    try:
        rendered = tokenizer.apply_chat_template(dialogue, tokenize=False)
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise ChatFormatError(
            f"The chat template can't be read{line}, or refuses a question with its answer: {error}. Give the folder "
            "another chat_template.jinja."
        ) from error
    if _MARKER not in rendered:
        raise ChatFormatError("The chat template leaves out the assistant's reply. Give the folder another template.")
    after = rendered[rendered.rindex(_MARKER) + 1 :]
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = {token: after.find(token) for token in special if token in after}
    if found:
        # The first one, and of several that begin there the longest.
        return min(found, key=lambda token: (found[token], -len(token)))
    if tokenizer.eos_token is None:
        raise ChatFormatError(
            "The chat template closes a reply with no control token and the tokenizer has no eos token; "
            "a reply would never end. Add an eos_token to tokenizer_config.json."
        )
    return tokenizer.eos_token


def write_chat_files(tokenizer: Any, folder: Path, stop_ids: Collection[int] = ()) -> ChatFormat:
    """Write tokenizer, template and chat.json of a completed tokenizer, and read them back.

    `stop_ids` also end a reply, beside the end-of-turn token of the template.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    variables = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    chat = {
        "format": 1,
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer)),
        "pad_id": tokenizer.pad_token_id,
        "score_id": tokenizer.convert_tokens_to_ids(SCORE),
        "template_variables": variables,
    }
    if others := sorted(set(stop_ids) - {chat["eos_id"]}):
        chat["stop_ids"] = others
    (folder / CHAT_FILE).write_text(json.dumps(chat, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return ChatFormat.load(folder)
