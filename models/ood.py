"""Out-of-distribution detection: how far a prompt lies from those that a policy was trained to answer.

`OodDetector` is what a server asks; `fit_detector` makes the plain Mahalanobis one. A detector's folder holds the
language model whose hidden states it reads, so that its scores do not change with the policy that is served.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.chat import ChatFormat, Message
from models.huggingface import load_causal_lm, model_card, save_model
from models.preference_batches import right_padded

SETTINGS_FILE = "detector.json"
STATISTICS_FILE = "statistics.safetensors"

# Share of the identity in the covariance: with fewer prompts than dimensions it could not be inverted otherwise.
_SHRINKAGE = 0.1
_BATCH = 16


class OodDetectorError(Exception):
    """A directory is not a detector that can score."""


class OodDetector:
    """Scores prompts by their squared Mahalanobis distance; above `threshold` a prompt counts as far from home."""

    def __init__(
        self, model: Any, chat: ChatFormat, layer: int, mean: Tensor, precision: Tensor, threshold: float
    ) -> None:
        self._model = model
        self._chat = chat
        self._layer = layer
        self._mean = mean
        self._precision = precision
        self.threshold = threshold

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> OodDetector:
        """The detector that was saved in a folder.

        Raises:
            OodDetectorError: the folder is no detector, or one of another kind.
        """
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            if settings["kind"] != "mahalanobis":
                raise OodDetectorError(f"{folder} is a detector of kind {settings['kind']!r}; expected 'mahalanobis'.")
            statistics = load_file(folder / STATISTICS_FILE, device=str(device))
            return cls(
                load_causal_lm(folder, device=device),
                ChatFormat.load(folder),
                int(settings["layer"]),
                statistics["mean"],
                statistics["precision"],
                float(settings["threshold"]),
            )
        except (OSError, ValueError, KeyError) as error:
            found = f"{type(error).__name__}: {error}"
            raise OodDetectorError(
                f"{folder} is no detector ({found}); expected {SETTINGS_FILE} beside a model."
            ) from error

    def score(self, prompts: Sequence[Sequence[Message]]) -> list[float]:
        """Squared Mahalanobis distance of each prompt; each ends with the message to be answered."""
        return distances(hidden_states(self._model, self._chat, prompts, self._layer), self._mean, self._precision)


@torch.inference_mode()
def hidden_states(model: Any, chat: ChatFormat, prompts: Sequence[Sequence[Message]], layer: int) -> Tensor:
    """B x D: the hidden state after `layer` (0: embeddings) at the last token of each prompt, in float32."""
    device = next(model.parameters()).device
    rows = []
    for first in range(0, len(prompts), _BATCH):
        sequences = [chat.encode(list(prompt), reply=True) for prompt in prompts[first : first + _BATCH]]
        ids, ends = right_padded(sequences, chat.pad_id, device)
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer]
        rows.append(states[torch.arange(len(sequences), device=device), ends].float())
    return torch.cat(rows)


def distances(states: Tensor, mean: Tensor, precision: Tensor) -> list[float]:
    """Squared Mahalanobis distance of each of B rows (B x D) from a mean (D) under a precision matrix (D x D).

    With mean 0 and precision diag(1, 4) the row (3, 1) has 9 + 4 = 13.

    Source: Lee et al. 2018, arXiv:1807.03888; paper.md [93].
    """
    centred = states - mean
    squared: list[float] = ((centred @ precision) * centred).sum(-1).tolist()
    return squared


def fit_detector(
    model: Any, chat: ChatFormat, prompts: Sequence[Sequence[Message]], folder: Path, *, layer: int, quantile: float
) -> dict[str, Any]:
    """Write a detector of the prompts a policy knows; the threshold is the `quantile` of their own distances.

    Raises:
        ValueError: fewer than two prompts, or a quantile outside 0 to 1.
    """
    if len(prompts) < 2 or not 0 < quantile <= 1:
        raise ValueError(f"{len(prompts)} prompts, quantile {quantile}: expected at least 2, and a share above 0")
    states = hidden_states(model, chat, prompts, layer)
    mean = states.mean(0)
    covariance = torch.cov(states.T)
    size = covariance.diagonal().mean()
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * size * torch.eye(len(mean), device=mean.device)
    precision = torch.linalg.inv(covariance)
    own = torch.tensor(distances(states, mean, precision))
    settings = {
        "kind": "mahalanobis",
        "layer": layer,
        "threshold": float(torch.quantile(own, quantile)),
        "quantile": quantile,
        "num_prompts": len(prompts),
    }
    text = "How far a prompt lies from those this was fitted on. No policy: don't deploy it."
    save_model(model, folder, chat, model_card("Out-of-distribution detector", text, settings, tags=("ood",)))
    save_file({"mean": mean.cpu(), "precision": precision.cpu().contiguous()}, folder / STATISTICS_FILE)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return settings
