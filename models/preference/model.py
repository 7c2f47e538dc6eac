"""The preference model: a language model's trunk with a scalar head, read at the end-of-context id.

`PreferenceModel` loads and scores; `fresh_preference_model` makes an untrained one from the initial policy.
Read next: `models/preference/training.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone.batches import chunk_cost_of, chunks_with_little_padding, right_padded
from models.backbone.context import context_of
from models.backbone.precision import EXACT, Filling, Precision, computing_exactly, computing_in, filling
from models.backbone.trunk import padded_states, states_at
from models.chat.format import ChatFormat, Message
from models.chat.refusals import Refusals
from models.model_folders.scalar_head import load_scorer
from models.preference.comparison_set import ComparisonSetError, pair_or_refusal, stream_lines
from models.preference.pairs import TokenPair
from models.preference.results import Offset, Reference
from models.preference.tree_states import can_pack, states_at_reads
from models.preference.trees import Tree
from models.runtime.results import result_from_json

# Tokens of one forward pass where none are asked for. On CPU larger tensors leave the cache (hidden size 128: 4,096 was
# 10% slower than 2,048); a GPU needs more to be busy, and training holds the activations of them all.
CHUNK_TOKENS_CPU = 2048
CHUNK_TOKENS_GPU = 16384

# Pairs that are sorted by length together.
SCORED_AT_ONCE = 4096


def default_chunk_tokens(device: torch.device) -> int:
    """Tokens of one forward pass that fill the device."""
    return CHUNK_TOKENS_CPU if device.type == "cpu" else CHUNK_TOKENS_GPU


class PreferenceModelError(Exception):
    """A directory is not a preference model that can score."""


class PreferenceModel:
    """Scores dialogues by how much raters would prefer the last reply; only differences of scores mean anything."""

    def __init__(
        self, model: nn.Module, chat: ChatFormat, offset: float | None = None, trained_on: float = math.inf
    ) -> None:
        """`offset` and `trained_on`, the longest text in tokens, are what it was published with (`published`)."""
        self.model: Any = model
        self.max_tokens = min(context_of(model), trained_on)
        """Tokens of the longest text that it can be asked about: what it can hold, and has seen in training."""
        self.precision: Precision = "float32"  # in which it scores; PPO may ask for another
        self.chat = chat
        # Mean score over the project's reference set; None where none was measured. Scores are raw everywhere; take it
        # off (`relative`) only where scores of several models stand beside each other.
        self.offset = offset
        self.device: torch.device = next(model.parameters()).device
        self.chunk_tokens = default_chunk_tokens(self.device)

    @classmethod
    def load(cls, directory: Path, device: torch.device | str = "cpu") -> PreferenceModel:
        """The preference model saved in a Hugging Face folder, in float32 and in evaluation mode.

        Raises:
            PreferenceModelError: the folder holds a model without a scalar head.
        """
        model, info = load_scorer(str(directory), dtype=torch.float32, output_loading_info=True)
        if info["missing_keys"] or model.config.num_labels != 1:
            raise PreferenceModelError(
                f"{directory} holds {model.config.num_labels} labels and lacks "
                f"{sorted(info['missing_keys'])}; expected a model with one score. "
                "Give the result of train_preference_model."
            )
        return cls(model.to(device).eval(), ChatFormat.load(Path(directory)), *published(Path(directory)))

    def relative(self, scores: Sequence[float]) -> list[float]:
        """Scores above this model's mean over the reference set, comparable with another model's.

        Raises:
            PreferenceModelError: the model was published without an offset.
        """
        if self.offset is None:
            raise PreferenceModelError(
                "This preference model has no offset, so that its scores can't be shown beside another model's. "
                "Train it with a reference set (input `reference`)."
            )
        return [score - self.offset for score in scores]

    def score(self, dialogues: Sequence[Sequence[Message]]) -> list[float]:
        """One score per dialogue, in nats of log-odds; each dialogue ends with the reply that is judged."""
        return self.score_sequences([self.chat.score_ids(list(messages)) for messages in dialogues])

    @torch.inference_mode()
    def score_sequences(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """One score per sequence of ids that ends with the end-of-context id.

        Raises:
            ValueError: a sequence ends otherwise; its last state was never trained to hold a score.
        """
        for ids in sequences:
            if len(ids) == 0 or ids[-1] != self.chat.score_id:
                raise ValueError(
                    f"A sequence ends with id {ids[-1] if len(ids) else None}, expected the "
                    f"end-of-context id {self.chat.score_id}. Build sequences with ChatFormat.score_ids."
                )
        scores = [0.0] * len(sequences)
        fill = filling(self.precision, self.device)
        lengths = [len(ids) for ids in sequences]
        for chunk in chunks_with_little_padding(lengths, self.chunk_tokens, chunk_cost_of(self.model)):
            with computing_in(self.precision, self.device):
                members = [sequences[i] for i in chunk]
                padded, ends = right_padded(members, self.chat.pad_id, self.device, fill, self.chunk_tokens)
                positions = torch.arange(len(members), device=self.device) * padded.shape[1] + ends
                values = _scores(self.model, states_at(self.model.base_model, padded, positions))
            for i, value in zip(chunk, values.tolist(), strict=True):
                scores[i] = value
        return scores

    def score_pairs(self, pairs: Sequence[TokenPair]) -> tuple[list[float], list[float]]:
        """Scores of the better and of the worse sides."""
        better: list[float] = []
        worse: list[float] = []
        # Blocks, so that the sequences in memory don't grow with the held-out part.
        for start in range(0, len(pairs), SCORED_AT_ONCE):
            block = pairs[start : start + SCORED_AT_ONCE]
            sides = [[*pair.prefix_ids, *pair.better_ids] for pair in block]
            sides += [[*pair.prefix_ids, *pair.worse_ids] for pair in block]
            scores = self.score_sequences(sides)
            better += scores[: len(block)]
            worse += scores[len(block) :]
        return better, worse


def fresh_preference_model(initial: Path, chat: ChatFormat, seed: int, device: torch.device) -> Any:
    """The trunk of a language model with a new scalar head, in float32 and in training mode.

    The head is drawn from a normal distribution of variance 1/hidden size from a
    random stream of its own, so that first scores are of order 1 and depend on
    nothing but the seed.
    """
    model, info = load_scorer(str(initial), num_labels=1, dtype=torch.float32, output_loading_info=True)
    if absent := sorted(set(info["missing_keys"]) - {"score.weight"}):
        raise PreferenceModelError(f"{initial} lacks the weights {', '.join(absent[:5])} of {type(model).__name__}.")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head = scalar_head(model)
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * head.weight.shape[1] ** -0.5)
    # Transformers finds the last id by looking for the last one that is not the pad id.
    model.config.pad_token_id = chat.pad_id
    model.config.use_cache = False
    return model.to(device).train()


def scalar_head(model: Any) -> nn.Linear:
    """The linear layer that gives the score; Hugging Face's decoder families all call it `score`."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise PreferenceModelError(
            f"{type(model).__name__} has no linear layer `score` with one output; this architecture is not supported."
        )
    return head


def end_scores(
    model: Any, sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, fill: Filling = EXACT
) -> Tensor:
    """B scores read at the last id of each sequence.

    Padding stands on the right, where causal attention never sees it from an
    earlier position, so no attention mask is needed.
    """
    ids, ends = right_padded(sequences, pad_id, device, fill)
    hidden = padded_states(model.base_model, ids, [len(sequence) for sequence in sequences])
    return _scores(model, hidden[torch.arange(len(sequences), device=device), ends])


def _scores(model: Any, states: Tensor) -> Tensor:
    """Scores (B,) of states (B, D), in float32 also where the trunk computes in less."""
    with computing_exactly(states.device):
        return scalar_head(model)(states.float())[:, 0]


def pair_scores(model: Any, pairs: Sequence[TokenPair], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scores of B better and B worse sides, each side a sequence of its own: the plain computation."""
    better = [[*pair.prefix_ids, *pair.better_ids] for pair in pairs]
    worse = [[*pair.prefix_ids, *pair.worse_ids] for pair in pairs]
    # In few shapes on a GPU; on a CPU as they are, in either precision.
    scores = end_scores(model, better + worse, pad_id, device, filling("float32", device))
    return scores[: len(pairs)], scores[len(pairs) :]


def tree_scores(model: Any, trees: Sequence[Tree], device: torch.device) -> tuple[Tensor, Tensor]:
    """What `pair_scores` gives for the pairs of these trees, in their order, each shared token computed once."""
    scores = _scores(model, states_at_reads(model.base_model, trees, device))
    by_tree = [tree.chunk(2) for tree in scores.split([len(tree.reads) for tree in trees])]
    return torch.cat([better for better, _ in by_tree]), torch.cat([worse for _, worse in by_tree])


__all__ = [
    "PreferenceModel",
    "PreferenceModelError",
    "can_pack",
    "end_scores",
    "fresh_preference_model",
    "pair_scores",
    "tree_scores",
]
FILE = "reference.jsonl"


def measure_offset(model: PreferenceModel, directory: Path, max_tokens: int) -> tuple[float, Reference]:
    """Mean score over both sides of the reference pairs, and which set that is.

    Pairs of more than `max_tokens` tokens, and those that the chat template refuses, are left out and counted.

    Raises:
        ComparisonSetError: no such file, a line of another shape, or no pair that fits.
    """
    path = directory / FILE
    if not path.is_file():
        raise ComparisonSetError(f"{directory} has no {FILE}; expected a reference set.")
    refusals = Refusals()
    read = (pair_or_refusal(record, model.chat, refusals) for record in stream_lines(path))
    pairs = [pair for pair in read if pair is not None]
    fitting = [pair for pair in pairs if max(pair.better_tokens, pair.worse_tokens) <= max_tokens]
    if not fitting:
        raise ComparisonSetError(
            f"None of the {len(pairs)} pairs of {path} has at most {max_tokens} tokens a side{refusals}."
        )
    better, worse = model.score_pairs(fitting)
    reference = Reference(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        num_pairs=len(fitting),
        too_long=len(pairs) - len(fitting),
        refused=refusals.found(),
    )
    return math.fsum([*better, *worse]) / (2 * len(fitting)), reference


def published(directory: Path) -> tuple[float | None, float]:
    """(offset, longest text in tokens) that a preference model was published with.

    The offset is None where it had no reference set, the length infinite where the folder does not say.
    """
    path = directory / "results.json"
    if not path.is_file():
        return None, math.inf
    results = json.loads(path.read_text(encoding="utf-8"))
    offset = result_from_json(Offset, results, where=f"the results in {directory}").over_reference_set
    longest = results.get("max_tokens")
    return offset, longest if isinstance(longest, int) else math.inf
