"""Out-of-distribution detection: how far a prompt lies from those that a policy was trained to answer.

`OodDetector` is what a server asks; `models/detectors/fitting.py` makes one, `models/detectors/scores.py` has the
maths. A detector's folder holds the language model whose hidden states it reads, so that its scores do not change with
the policy that is served.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbone.batches import chunks_by_length, right_padded
from models.backbone.context import context_of
from models.chat.format import ChatFormat, Message
from models.detectors.scores import exposure_logit, mahalanobis, relative_mahalanobis
from models.detectors.settings import DetectorKind
from models.model_folders.loading import load_causal_lm
from models.model_folders.saving import model_card, save_model

SETTINGS_FILE = "detector.json"
STATISTICS_FILE = "statistics.safetensors"

KINDS: tuple[DetectorKind, ...] = get_args(DetectorKind)

# Tokens of one forward pass, padding included.
_CHUNK_TOKENS = 4096


class OodDetectorError(Exception):
    """A directory is not a detector that can score."""


def score_states(kind: DetectorKind, statistics: Mapping[str, Tensor], states: Tensor) -> Tensor:
    """B scores of B x D hidden states: `mean` and `cholesky` make a distance, `weight` and `bias` log-odds."""
    if kind == "exposure":
        return exposure_logit(states, statistics["weight"], statistics["bias"])
    distance = mahalanobis if kind == "mahalanobis" else relative_mahalanobis
    return distance(states, statistics["mean"], statistics["cholesky"])


class OodDetector:
    """Scores prompts; above `threshold` a prompt counts as far from home."""

    def __init__(
        self,
        model: Any,
        chat: ChatFormat,
        kind: DetectorKind,
        layer: int,
        statistics: Mapping[str, Tensor],
        threshold: float,
    ) -> None:
        self._model = model
        self._chat = chat
        self.kind = kind
        self._layer = layer
        self._statistics = statistics
        self.threshold = threshold

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> OodDetector:
        """The detector that was saved in a folder.

        Raises:
            OodDetectorError: the folder is no detector, or one of another kind.
        """
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            if settings["kind"] not in KINDS:
                raise OodDetectorError(
                    f"{folder} is a detector of kind {settings['kind']!r}; expected one of {', '.join(KINDS)}."
                )
            statistics = load_file(folder / STATISTICS_FILE, device=str(device))
            if "precision" in statistics:
                statistics = _with_cholesky(statistics)
            # Asked now, not by the first request: a file that lacks a number is no detector.
            size = len(statistics["weight" if settings["kind"] == "exposure" else "mean"])
            score_states(settings["kind"], statistics, torch.zeros(1, size, device=device))
            return cls(
                load_causal_lm(folder, device=device),
                ChatFormat.load(folder),
                settings["kind"],
                int(settings["layer"]),
                statistics,
                float(settings["threshold"]),
            )
        except (OSError, ValueError, KeyError) as error:
            found = f"{type(error).__name__}: {error}"
            raise OodDetectorError(
                f"{folder} is no detector ({found}); expected {SETTINGS_FILE} beside a model."
            ) from error

    def score(self, prompts: Sequence[Sequence[Message]]) -> list[float]:
        """The score of each prompt; each ends with the message to be answered."""
        sequences = [self._chat.encode(list(prompt), reply=True) for prompt in prompts]
        (states,) = hidden_states(self._model, self._chat.pad_id, sequences, [self._layer])
        scores: list[float] = score_states(self.kind, self._statistics, states).tolist()
        return scores


def save_detector(
    model: Any, chat: ChatFormat, statistics: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path
) -> None:
    """Write a detector's folder: model, statistics, and `detector.json` with `kind`, `layer` and `threshold`."""
    text = "How far a prompt lies from those this was fitted on. No policy: don't deploy it."
    save_model(model, folder, chat, model_card("Out-of-distribution detector", text, settings, tags=("ood",)))
    save_file({name: tensor.cpu().contiguous() for name, tensor in statistics.items()}, folder / STATISTICS_FILE)
    (folder / SETTINGS_FILE).write_text(json.dumps(dict(settings), indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def hidden_states(
    model: Any, pad_id: int, sequences: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[Tensor, ...]:
    """For each of `layers` (0: embeddings) B x D: the hidden state after it at each sequence's last token, float32.

    A sequence longer than the model's context is read from its end, where the message to be answered stands.
    """
    device = next(model.parameters()).device
    context = context_of(model)
    sequences = [list(ids)[-int(context) :] if context < len(ids) else list(ids) for ids in sequences]
    found: list[Tensor] | None = None
    for rows in chunks_by_length([len(ids) for ids in sequences], _CHUNK_TOKENS):
        ids, ends = right_padded([sequences[row] for row in rows], pad_id, device)
        states = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        last = [states[layer][torch.arange(len(rows), device=device), ends].float() for layer in layers]
        if found is None:
            found = [torch.empty(len(sequences), part.shape[1], device=device) for part in last]
        for whole, part in zip(found, last, strict=True):
            whole[rows] = part
    if found is None:
        raise ValueError("no sequences; hidden states need at least one")
    return tuple(found)


def _with_cholesky(statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Statistics of a detector that was saved with its precision matrix, as they are saved today."""
    precision = statistics["precision"].double()
    covariance = torch.linalg.inv((precision + precision.T) / 2)
    return {"mean": statistics["mean"].double(), "cholesky": torch.linalg.cholesky((covariance + covariance.T) / 2)}
