"""What a student learns from: the teacher's distributions over texts that it reads behind a prompt.

`models/jobs/make_distillation_set.py` is the process around it; the maths is in `distillation.py`.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.backbone.batches import chunks_by_length, right_padded
from models.backbone.context import context_of
from models.backbone.output_layer import logits_of
from models.backbone.trunk import padded_states
from models.chat.format import ChatFormat, Message, TemplateRefusal
from models.chat.refusals import Refusals
from models.initial_policy.distillation import (
    PROMPT_FILE,
    DistilledText,
    Targets,
    lay_out,
    targets_of,
)
from models.initial_policy.settings import DistillationSetSettings
from models.runtime.job import JobError
from models.runtime.random_numbers import permutation

# Tokens of one forward pass of the teacher, the prompt's included.
CHUNK_TOKENS = 4096
KINDS = ("plain", "dialogue")


def read_prompt(folder: Path) -> tuple[str, list[Message]]:
    """(version, messages) of the prompt.

    Raises:
        JobError: no prompt.json, or one of another shape.
    """
    try:
        record = json.loads((folder / PROMPT_FILE).read_text(encoding="utf-8"))
        return str(record["version"]), [Message(role=m["role"], content=m["content"]) for m in record["messages"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{folder / PROMPT_FILE} is no prompt ({error!r}); expected version and messages.") from error


def check_room(model: Any, prompt_tokens: int, max_tokens: int) -> None:
    """Raise JobError unless the teacher can read a text of that length after the prompt."""
    context = context_of(model)
    if prompt_tokens + max_tokens > context:
        raise JobError(
            f"The prompt has {prompt_tokens} tokens, with {max_tokens} of text (distill.max_tokens) that makes "
            f"{prompt_tokens + max_tokens}; the teacher holds {context}. Give a shorter prompt (distill.prompt_file), "
            "less text, or a teacher with more context."
        )


class Texts:
    """The texts of a file in an order drawn by the seed, plain ones and dialogues taking turns by tokens."""

    def __init__(self, file: Path, seed: int) -> None:
        self._file = file
        self.refusals = Refusals()
        self.taken = dict.fromkeys(KINDS, 0)
        places = {kind: array("q") for kind in KINDS}
        try:
            with file.open("rb") as lines:
                place = 0
                for line in lines:
                    if line.strip():
                        is_plain = b'"text"' in line and "text" in json.loads(line)
                        places["plain" if is_plain else "dialogue"].append(place)
                    place += len(line)
        except (OSError, ValueError) as error:
            raise JobError(f"{file} can't be read ({error}); expected one JSON object a line.") from error
        self._places = {
            kind: [found[index] for index in permutation(seed + number, len(found)).tolist()] if found else []
            for number, (kind, found) in enumerate(places.items())
        }

    def __iter__(self) -> Iterator[tuple[str, list[Message]]]:
        """(kind, messages); the consumer's `count` decides whose turn it is."""
        self.tokens = dict.fromkeys(KINDS, 0)
        rest = {kind: iter(found) for kind, found in self._places.items()}
        with self._file.open("rb") as lines:
            while rest:
                kind = min(rest, key=lambda name: self.tokens[name])
                place = next(rest[kind], None)
                if place is None:
                    del rest[kind]
                    continue
                lines.seek(place)
                yield kind, self._messages(lines.readline())

    def count(self, kind: str, tokens: int) -> None:
        """Say how many tokens of the text were taken."""
        self.tokens[kind] += tokens
        self.taken[kind] += 1

    def _messages(self, line: bytes) -> list[Message]:
        record = json.loads(line)
        try:
            if "text" in record:
                return [Message(role="user", content=str(record["text"]))]
            return [Message(role=m["role"], content=m["content"]) for m in record["messages"]]
        except (KeyError, TypeError) as error:
            raise JobError(f"{self._file} holds a line that is no dialogue ({error!r}): {line[:80]!r}") from error


def groups(
    texts: Texts, chat: ChatFormat, prompt: list[Message], settings: DistillationSetSettings
) -> Iterator[list[DistilledText]]:
    """The held-out texts, then the training shards until there are tokens enough, from the arguments alone."""
    group: list[DistilledText] = []
    held_out, size, total = True, 0, 0
    for kind, messages in texts:
        if not messages:
            continue
        try:
            laid = lay_out(chat, prompt, messages, settings.max_tokens)
        except TemplateRefusal as refusal:
            texts.refusals.add(refusal.reason)
            laid = None
        if laid is None:
            # A text of one token, or one that the template refuses, still takes its turn.
            texts.tokens[kind] += 1
            continue
        texts.count(kind, laid.num_targets)
        group.append(laid)
        size += laid.num_targets
        if held_out:
            if len(group) == settings.held_out_texts:
                yield group
                group, size, held_out = [], 0, False
            continue
        total += laid.num_targets
        if size >= settings.shard_tokens or total >= settings.tokens:
            yield group
            group, size = [], 0
        if total >= settings.tokens:
            return
    if group:
        yield group


@torch.inference_mode()
def read(model: Any, pad_id: int, group: list[DistilledText], device: torch.device) -> Targets:
    """The teacher's targets of all texts of a group, one text after the other."""
    found: list[Targets | None] = [None] * len(group)
    for rows in chunks_by_length([len(text.teacher) for text in group], CHUNK_TOKENS):
        ids, _ = right_padded([group[row].teacher for row in rows], pad_id, device)
        hidden = padded_states(model.base_model, ids, [len(group[row].teacher) for row in rows])
        for place, row in enumerate(rows):
            text = group[row]
            begin = len(text.teacher) - text.num_targets - 1
            logits = logits_of(model, hidden[place, begin : begin + text.num_targets])
            found[row] = Targets(*(part.cpu() for part in targets_of(logits)))
    parts = [targets for targets in found if targets is not None]
    return Targets(*(torch.cat(list(tensors)) for tensors in zip(*parts, strict=True)))


def save_aside(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a shard so that it is there whole or not at all."""
    aside = file.with_suffix(".tmp")
    save_file(tensors, aside)
    os.replace(aside, file)
