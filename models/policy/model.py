"""A policy as PPO and evaluation see it: log-probs, entropies and values of reply tokens, and only of those.

Sequences are right-padded, so that the causal mask alone keeps padding from every real token and no
attention mask is needed; the vocabulary head runs on positions that predict a reply token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.backbone.output_layer import output_layer
from models.backbone.precision import Precision, computing_in, filling
from models.backbone.trunk import goes_by_hand, states_at
from models.policy.reply_chunks import ReplyChunk

if TYPE_CHECKING:
    from models.policy.critic import Critic


@dataclass(frozen=True)
class Reading:
    """What one forward pass tells about reply tokens: (B, R) each, 0 where there is no token."""

    logps: Tensor
    entropies: Tensor
    values: Tensor


class Policy:
    """A causal language model read at the positions that predict reply tokens."""

    def __init__(self, model: Any, precision: Precision = "float32") -> None:
        self.model = model
        self.precision = precision
        # None for families of which the way from states to logits is not known; they are run whole.
        self._head = output_layer(model)
        # Set to False beside a policy that can't: only the same operations give the same digits.
        self.by_hand = self._head is not None and goes_by_hand(model.base_model)

    def states_and_logits(self, chunk: ReplyChunk) -> tuple[Tensor, Tensor]:
        """Final hidden states (N, D) and logits (N, V) of the chunk's reply tokens."""
        with computing_in(self.precision, self.model.device):
            return self._states_and_logits(chunk)

    def _states_and_logits(self, chunk: ReplyChunk) -> tuple[Tensor, Tensor]:
        if self._head is not None:
            count = len(chunk.positions)
            padding = filling(self.precision, self.model.device).tokens(count) - count
            positions = torch.cat([chunk.positions, chunk.positions[:1].expand(padding)])
            states = states_at(self.model.base_model, chunk.ids, positions, hand=self.by_hand)
            return states[:count], self._head(states)[:count]
        output = self.model(input_ids=chunk.ids, use_cache=False, output_hidden_states=True)
        hidden = output.hidden_states[-1]
        logits = output.logits.reshape(-1, output.logits.shape[-1]).index_select(0, chunk.positions)
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, chunk.positions), logits

    @torch.no_grad()
    def read(self, chunks: Sequence[ReplyChunk], shape: tuple[int, int], critic: Critic | None = None) -> Reading:
        """Everything about all reply tokens as (B, R) tensors, without gradients."""
        device = self.model.device
        reading = Reading(*(torch.zeros(shape, device=device) for _ in range(3)))
        for chunk in chunks:
            states, logits = self.states_and_logits(chunk)
            logps, entropies = selected_logps(logits, chunk.targets)
            reading.logps.view(-1)[chunk.places] = logps
            reading.entropies.view(-1)[chunk.places] = entropies
            if critic is not None:
                reading.values.view(-1)[chunk.places] = critic(chunk, states)
        return reading


class _SelectedLogps(torch.autograd.Function):
    """Log-softmax, selection and entropy in one pass that keeps a single (N, V) tensor for the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        all_logps = torch.log_softmax(logits.float(), dim=-1)
        logps = all_logps.gather(1, ids[:, None])[:, 0]
        probs = all_logps.exp()
        entropies = all_logps.mul_(probs).sum(dim=-1).neg_()
        ctx.save_for_backward(probs, ids)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, _grad_entropies: Tensor) -> tuple[Tensor, None]:
        # d log p(i) / d logit(j) = [i = j] - p(j)
        probs, ids = ctx.saved_tensors
        grad = probs * -grad_logps[:, None]
        grad.scatter_add_(1, ids[:, None], grad_logps[:, None])
        return grad.to(ctx.dtype), None


def selected_logps(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-prob of the selected token and exact entropy of each row, both in nats.

    The entropy carries no gradient: the paper uses no entropy bonus, and it is only watched.

    Args:
        logits: (N, V), finite.
        ids: (N,).

    Returns:
        log-probs (N,) and entropies (N,), float32.
    """
    return _SelectedLogps.apply(logits, ids)
