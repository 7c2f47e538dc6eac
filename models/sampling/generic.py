"""Decoding for any Hugging Face causal language model, through its own cache.

The running requests are left-padded rows of one batch with one cache, which newcomers join once their prompts are
computed (`batch_cache.py`). Slower than models/sampling/llama.py, but it asks of a model only `past_key_values` and an
attention mask.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone.precision import Precision, computing_in
from models.backbone.rotary import depends_on_length
from models.sampling import batch_cache


@dataclass
class _Batch:
    """Rows that are decoded in one forward; `mask` is (b, T), True on real tokens."""

    cache: Any
    mask: Tensor


class GenericDecoder:
    """Same interface as LlamaDecoder; rows are those of the batches, one batch after another.

    There is one batch, but for models whose angles depend on the longest row of a forward, and for caches that hold
    what we don't know: then those that joined together stay together.
    """

    def __init__(self, model: Any, precision: Precision = "float32") -> None:
        self.model, self.precision = model, precision
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        # Of a prompt only the last token's logits are wanted; a vocabulary's worth for each would fill the memory.
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._apart = depends_on_length(model.config)
        self._batches: list[_Batch] = []

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
        batch = _Batch(cache=None, mask=mask)
        logits = self._forward(batch, ids)
        if self._batches and not self._apart and batch_cache.is_known(batch.cache):
            self._join(batch)
        else:
            self._batches.append(batch)
        return logits

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Append one token to every row, ids (n,), and give the logits that follow it, (n, V)."""
        logits, start = [], 0
        for batch in self._batches:
            count = len(batch.mask)
            batch.mask = torch.cat([batch.mask, batch.mask.new_ones((count, 1))], dim=1)
            logits.append(self._forward(batch, ids[start : start + count, None]))
            start += count
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def drop(self, ended: set[int]) -> list[int]:
        """Remove rows, the others keeping their order; gives for every row left which one it was before."""
        batches: list[_Batch] = []
        order: list[int] = []
        start = 0
        for batch in self._batches:
            count = len(batch.mask)
            kept = [row for row in range(count) if start + row not in ended]
            order.extend(start + row for row in kept)
            start += count
            if not kept:
                continue
            if len(kept) < count:
                _take_rows(batch, torch.tensor(kept, device=batch.mask.device))
            batches.append(batch)
        self._batches = batches
        return order

    def _join(self, newcomers: _Batch) -> None:
        running = self._batches[-1]
        width = max(running.mask.shape[1], newcomers.mask.shape[1])
        masks = [F.pad(batch.mask, (width - batch.mask.shape[1], 0)) for batch in (running, newcomers)]
        batch_cache.append_rows(running.cache, newcomers.cache)
        running.mask = torch.cat(masks)

    def _forward(self, batch: _Batch, ids: Tensor) -> Tensor:
        extra: dict[str, Tensor] = {}
        if self._takes_positions:
            positions = (batch.mask.long().cumsum(dim=1) - 1).clamp_(min=0)
            extra["position_ids"] = positions[:, -ids.shape[1] :]
        with computing_in(self.precision, ids.device):
            output = self.model(
                input_ids=ids,
                attention_mask=batch.mask.long(),
                past_key_values=batch.cache,
                use_cache=True,
                **self._last_only,
                **extra,
            )
        batch.cache = output.past_key_values
        return output.logits[:, -1].float()


def _take_rows(batch: _Batch, rows: Tensor) -> None:
    """Keep these rows, and no columns in which none of them has a token."""
    if not batch_cache.is_known(batch.cache):
        batch.cache.reorder_cache(rows)
        batch.mask = batch.mask[rows]
        return
    batch_cache.take_rows(batch.cache, rows)
    batch.mask = batch.mask[rows]
    empty = int(batch.mask.any(dim=0).int().argmax())
    if empty:
        batch_cache.cut_left(batch.cache, empty)
        batch.mask = batch.mask[:, empty:]
