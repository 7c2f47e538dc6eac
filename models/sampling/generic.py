"""Decoding for any Hugging Face causal language model, through its own cache.

Requests that join together form a wave: left-padded rows of one batch with one cache. Slower
than models/sampling/llama.py, but it asks of a model only `past_key_values` and an attention mask.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.backbone.precision import Precision, computing_in


@dataclass
class _Wave:
    """Rows that were admitted together; `mask` is (b, T), True on real tokens."""

    cache: Any
    mask: Tensor


class GenericDecoder:
    """Same interface as LlamaDecoder; rows are the waves' rows, one wave after another."""

    def __init__(self, model: Any, precision: Precision = "float32") -> None:
        self.model, self.precision = model, precision
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._waves: list[_Wave] = []

    def sync(self) -> None:
        """Nothing to do: the model's own weights are used in place."""

    def reserve(self, rows: int, length: int) -> None:
        """Nothing to do: the model's cache grows by itself."""

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows for these prompts; gives the logits after each prompt's last token, (b, V)."""
        width = max(len(prompt) for prompt in prompts)
        device = self.model.device
        ids = torch.tensor([[*[0] * (width - len(prompt)), *prompt] for prompt in prompts], device=device)
        real = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask = torch.arange(width, device=device)[None] >= width - real[:, None]
        wave = _Wave(cache=None, mask=mask)
        self._waves.append(wave)
        return self._forward(wave, ids)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Append one token to every row, ids (n,), and give the logits that follow it, (n, V)."""
        logits, start = [], 0
        for wave in self._waves:
            count = len(wave.mask)
            wave.mask = torch.cat([wave.mask, wave.mask.new_ones((count, 1))], dim=1)
            logits.append(self._forward(wave, ids[start : start + count, None]))
            start += count
        return torch.cat(logits)

    def drop(self, ended: set[int]) -> list[int]:
        """Remove rows, the others keeping their order; gives for every row left which one it was before."""
        waves: list[_Wave] = []
        order: list[int] = []
        start = 0
        for wave in self._waves:
            count = len(wave.mask)
            kept = [row for row in range(count) if start + row not in ended]
            order.extend(start + row for row in kept)
            start += count
            if not kept:
                continue
            if len(kept) < count:
                rows = torch.tensor(kept, device=wave.mask.device)
                wave.cache.batch_select_indices(rows)
                wave.mask = wave.mask[rows]
            waves.append(wave)
        self._waves = waves
        return order

    def _forward(self, wave: _Wave, ids: Tensor) -> Tensor:
        extra: dict[str, Any] = {}
        if self._takes_positions:
            positions = (wave.mask.long().cumsum(dim=1) - 1).clamp_(min=0)
            extra["position_ids"] = positions[:, -ids.shape[1] :]
        with computing_in(self.precision, ids.device):
            output = self.model(
                input_ids=ids,
                attention_mask=wave.mask.long(),
                past_key_values=wave.cache,
                use_cache=True,
                **extra,
            )
        wave.cache = output.past_key_values
        return output.logits[:, -1].float()
