"""Load and save models as Hugging Face folders: float32 safetensors, tokenizer, chat template, model card.

Weights are always float32 unless a caller says otherwise: without `dtype` transformers takes the one of the
config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from models.chat.format import ChatFormat
from models.model_folders.probe_reply import write_probe_reply

# Bars of transformers fill a job's log file with half-drawn lines.
transformers_logging.disable_progress_bar()


def save_model(model: PreTrainedModel, folder: Path | str, chat: ChatFormat, card: str) -> None:
    """Write a model's folder: config.json, model.safetensors, tokenizer files, chat.json and README.md.

    A model that generates also gets its probe reply (`models/model_folders/probe_reply.py`).

    The end-of-turn and pad ids of the chat format go into the configs, so that `generate` and the classes of
    transformers agree with us.
    """
    folder = Path(folder)
    model.config.pad_token_id = chat.pad_id
    model.config.eos_token_id = chat.eos_id
    if chat.bos_id is not None:
        model.config.bos_token_id = chat.bos_id
    if model.can_generate():
        # The publisher's sampling settings (temperature 0.7, for one) are not this policy's.
        model.generation_config = GenerationConfig(
            bos_token_id=chat.bos_id, eos_token_id=_one_or_several(chat), pad_token_id=chat.pad_id
        )
    model.save_pretrained(str(folder), max_shard_size="1000GB")
    chat.copy_to(folder)
    if model.can_generate():
        write_probe_reply(model, chat, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _one_or_several(chat: ChatFormat) -> int | list[int]:
    """What ends a reply, as a generation configuration says it."""
    return chat.eos_id if len(chat.stop_ids) == 1 else [chat.eos_id, *sorted(chat.stop_ids - {chat.eos_id})]


def model_card(title: str, text: str, facts: Mapping[str, Any], *, tags: tuple[str, ...] = ()) -> str:
    """The README.md of a model folder: front matter, what it is, and a table of facts.

    Give it nothing that differs between two runs of one spec (times, hosts, paths): the digest covers it.
    """
    front = ["---", "library_name: transformers", "tags:", *(f"- {tag}" for tag in ("rlhf", *tags)), "---"]
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    table = ["| | |", "|---|---|", *rows] if rows else []
    return "\n".join([*front, "", f"# {title}", "", text, "", *table, ""])


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")
