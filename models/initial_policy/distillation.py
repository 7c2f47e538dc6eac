"""Context distillation: a policy learns to say without the prompt what its teacher says after it.

The teacher's likeliest tokens after the prompt are stored once (`models/jobs/make_distillation_set.py`); students of
any size with the same tokenizer are trained on them (`models/jobs/distill_student.py`). This has the loss, the layout
of a text, and the shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.chat.format import FILES, ChatFormat, Message

MANIFEST_FILE = "manifest.json"
PROMPT_FILE = "prompt.json"
TOP_K = 50


class DistillationError(Exception):
    """A distillation set can't be read, or a text can't follow the prompt."""


class Targets(NamedTuple):
    """What the teacher says at N places: ids and log-probs of its K likeliest tokens, and the log of what is left."""

    top_ids: Tensor  # N x K, int
    top_logprobs: Tensor  # N x K
    rest_logprob: Tensor  # N


def rest_logprob(logits: Tensor, top_ids: Tensor) -> Tensor:
    """N log-probs of all tokens but the K in `top_ids` (N x K) together; -inf where those are the whole vocabulary.

    Summed over the others, not 1 less the top ones: where a model is sure, that would round to 0.
    """
    others = logits.scatter(-1, top_ids, float("-inf"))
    return others.logsumexp(-1) - logits.logsumexp(-1)


def targets_of(logits: Tensor, k: int = TOP_K) -> Targets:
    """The teacher's targets from its N x V logits."""
    logits = logits.float()
    top = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return Targets(top.indices, top.values - logits.logsumexp(-1, keepdim=True), rest_logprob(logits, top.indices))


def distillation_kl(logits: Tensor, targets: Targets) -> Tensor:
    """N divergences KL(teacher ‖ student) in nats over K + 1 categories; the last is every other token together.

    Teacher (1/2, 1/4, rest 1/4) and student (1/4, 1/4, rest 1/2): 1/2·ln 2 + 0 - 1/4·ln 2 = 1/4·ln 2.

    Source: Bai et al. 2022, arXiv:2204.05862, appendix A.1; paper.md [6].
    """
    logits = logits.float()
    ids = targets.top_ids.long()
    student = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    top = (targets.top_logprobs.exp() * (targets.top_logprobs - student)).sum(-1)
    if ids.shape[-1] == logits.shape[-1]:
        return top
    rest = targets.rest_logprob
    left = rest.exp() * (rest - rest_logprob(logits, ids))
    # No mass left at the teacher: 0·log 0 is 0.
    return top + torch.where(rest == float("-inf"), torch.zeros_like(left), left)


class DistilledText(NamedTuple):
    """A text as the student and as the teacher read it; from `first` on the student's ids are the teacher's last."""

    student: list[int]
    teacher: list[int]
    first: int

    @property
    def num_targets(self) -> int:
        """Places at which both say what comes next within the text."""
        return len(self.student) - self.first - 1


def lay_out(
    chat: ChatFormat, prompt: Sequence[Message], messages: Sequence[Message], max_tokens: int
) -> DistilledText | None:
    """A dialogue with and without the prompt before it, cut after `max_tokens` of its own; None where nothing is left.

    Raises:
        DistillationError: the template writes the dialogue otherwise when the prompt stands before it.
    """
    alone, after = chat.encode(messages), chat.encode([*prompt, *messages])
    common = 0
    while common < min(len(alone), len(after)) and alone[-1 - common] == after[-1 - common]:
        common += 1
    first = len(alone) - common
    # What the template writes before every dialogue (a BOS, a standing system message, a role) is no text of ours.
    if first > _standing(chat):
        raise DistillationError(
            f"The chat template writes a dialogue otherwise after the prompt: of {len(alone)} ids only the last "
            f"{common} are the same. Take a prompt without text before its first Human:, or another template."
        )
    cut = max_tokens - common
    if cut < 0:
        alone, after = alone[:cut], after[:cut]
    return DistilledText(alone, after, first) if len(alone) - first >= 2 else None


def _standing(chat: ChatFormat) -> int:
    """Ids that every dialogue begins with."""
    one, other = (chat.encode([{"role": "user", "content": letter}]) for letter in "ab")
    return next(place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)


@dataclass(frozen=True)
class Manifest:
    """What a distillation set holds."""

    prompt_version: str
    prompt_tokens: int
    top_k: int
    vocab_size: int
    shards: tuple[int, ...]
    """Sequences of each training shard."""
    held_out: int
    """Sequences of the held-out shard."""

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the set's manifest.

        Raises:
            DistillationError: the folder is no distillation set.
        """
        try:
            found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            return cls(**(found | {"shards": tuple(found["shards"])}))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DistillationError(f"{folder} is no distillation set ({type(error).__name__}: {error}).") from error


def shard_file(number: int) -> str:
    """Name of a training shard."""
    return f"train-{number:05d}.safetensors"


HELD_OUT_FILE = "held_out.safetensors"


class Shard:
    """Texts with their targets: `ids`, `top_ids` … lie flat; `starts` and `target_starts` say where a text begins."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.starts = tensors["starts"].tolist()
        self.target_starts = tensors["target_starts"].tolist()
        self.first = tensors["first"].tolist()

    @classmethod
    def load(cls, file: Path) -> Shard:
        """Read one shard."""
        return cls(load_file(file))

    def __len__(self) -> int:
        return len(self.first)

    def length(self, row: int) -> int:
        """Ids of a sequence."""
        return int(self.starts[row + 1] - self.starts[row])

    def num_targets(self, row: int) -> int:
        """Places of a sequence that have a target."""
        return int(self.target_starts[row + 1] - self.target_starts[row])

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Targets]:
        """(ids B x T, right-padded with 0; mask B x T, True where there is a target; the targets in that order)."""
        width = max(self.length(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, row in enumerate(rows):
            ids[place, : self.length(row)] = self._tensors["ids"][self.starts[row] : self.starts[row + 1]].long()
            mask[place, self.first[row] : self.first[row] + self.num_targets(row)] = True
        parts = [slice(self.target_starts[row], self.target_starts[row + 1]) for row in rows]
        names = ("top_ids", "top_logprobs", "rest_logprob")
        targets = Targets(*(torch.cat([self._tensors[name][part] for part in parts]).to(device) for name in names))
        return ids.to(device), mask.to(device), targets


def pack_shard(sequences: Sequence[DistilledText], targets: Targets) -> dict[str, Tensor]:
    """The tensors of a shard; `targets` are those of all sequences, one after the other."""
    starts = torch.tensor([0, *(len(sequence.student) for sequence in sequences)]).cumsum(0)
    target_starts = torch.tensor([0, *(sequence.num_targets for sequence in sequences)]).cumsum(0)
    return {
        "ids": torch.tensor([index for sequence in sequences for index in sequence.student], dtype=torch.int32),
        "first": torch.tensor([sequence.first for sequence in sequences], dtype=torch.int32),
        "starts": starts,
        "target_starts": target_starts,
        "top_ids": targets.top_ids.int().contiguous(),
        "top_logprobs": targets.top_logprobs.contiguous(),
        "rest_logprob": targets.rest_logprob.contiguous(),
    }


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two folders turn messages into the same ids: tokenizer, template and chat.json, byte for byte."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES[:3])
