"""Prompt sets: reading them, and the order in which PPO visits them.

A prompt set is a directory with prompts.jsonl (id, kind, split, messages). Everything here is a pure
function of its arguments, so that a resumed run sees the same prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.chat.format import ChatFormat, ChatFormatError, Message, TemplateRefusal
from models.chat.refusals import Refusals, RefusedRecords
from models.runtime.random_numbers import derive_seed, permutation

Kind = Literal["helpful", "harmless"]
KINDS: tuple[Kind, ...] = ("helpful", "harmless")


class PromptSetError(Exception):
    """A prompt set can't be read, or has nothing to offer for what was asked."""


@dataclass(frozen=True)
class Prompt:
    """A dialogue that waits for the assistant's reply; `ids` end where the reply begins."""

    id: str
    kind: Kind
    messages: tuple[Message, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompts:
    """The prompts of one split, in the order of their ids, and how many were too long or refused by the template."""

    prompts: list[Prompt]
    num_too_long: int
    refused: RefusedRecords | None = None


def load_prompts(folder: Path, chat: ChatFormat, split: str, max_tokens: float) -> Prompts:
    """The prompts of one split with at most `max_tokens` tokens, those left out that the chat template refuses.

    Raises:
        PromptSetError: the file is missing or malformed, or no prompt is left.
    """
    path = folder / "prompts.jsonl"
    if not path.is_file():
        raise PromptSetError(f"{folder} has no prompts.jsonl; expected a prompt set. Give the result of build_prompts.")
    prompts, num_too_long, splits, refusals = [], 0, set(), Refusals()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                splits.add(record["split"])
                if record["split"] != split:
                    continue
                if record["kind"] not in KINDS:
                    raise ValueError(f"kind is {record['kind']!r}, expected one of {', '.join(KINDS)}")
                ids = chat.encode(record["messages"], reply=True)
            except TemplateRefusal as refusal:
                refusals.add(refusal.reason)
                continue
            except (ValueError, KeyError, TypeError, ChatFormatError) as error:
                raise PromptSetError(f"{path}, line {number}: {error!r}. Build the prompt set again.") from error
            if len(ids) > max_tokens:
                num_too_long += 1
                continue
            prompts.append(Prompt(str(record["id"]), record["kind"], tuple(record["messages"]), tuple(ids)))
    if not prompts:
        raise PromptSetError(
            f"{path} has 0 prompts of split '{split}' with at most {max_tokens} tokens ({num_too_long} are longer"
            f"{refusals}; splits present: {', '.join(sorted(splits)) or 'none'}). "
            "Collect more, raise max_prompt_tokens where it is given, or lower max_reply_tokens."
        )
    # Ids are digests: their order is arbitrary but the same whatever order the file has.
    prompts.sort(key=lambda prompt: prompt.id)
    return Prompts(prompts, num_too_long, refusals.found())


class PromptStream:
    """An endless sequence of prompts; what stands at a place depends on the arguments alone.

    Each kind is visited in passes over its shuffled prompts. A harmless prompt comes `harmless_weight`
    times as often as a helpful one, spread evenly.
    """

    def __init__(self, prompts: Sequence[Prompt], harmless_weight: float, seed: int) -> None:
        self._by_kind = {kind: [prompt for prompt in prompts if prompt.kind == kind] for kind in KINDS}
        self._seed = seed
        mass = harmless_weight * len(self._by_kind["harmless"])
        total = mass + len(self._by_kind["helpful"])
        if total == 0:
            raise PromptSetError(
                f"All {len(prompts)} prompts are harmless and harmless_weight is 0: nothing to train on. Raise it."
            )
        self.harmless_share = mass / total
        self._orders: dict[tuple[Kind, int], list[int]] = {}

    def batch(self, start: int, size: int) -> list[Prompt]:
        """The prompts at places start .. start + size - 1."""
        return [self._at(place) for place in range(start, start + size)]

    def _at(self, place: int) -> Prompt:
        # Place n is harmless where the number of harmless ones due by then steps up.
        before, after = (math.floor((place + extra) * self.harmless_share + 1e-9) for extra in (0, 1))
        kind: Kind = "harmless" if after > before else "helpful"
        count = before if kind == "harmless" else place - before
        prompts = self._by_kind[kind]
        epoch, position = divmod(count, len(prompts))
        order = self._orders.get((kind, epoch))
        if order is None:
            seed = derive_seed(self._seed, KINDS.index(kind), epoch)
            order = self._orders[kind, epoch] = permutation(seed, len(prompts)).tolist()
        return prompts[order[position]]
