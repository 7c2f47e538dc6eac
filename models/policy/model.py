"""A policy as PPO and evaluation see it: log-probs, entropies and values of reply tokens, and only of those.

Sequences are right-padded, so that the causal mask alone keeps padding from every real token and no
attention mask is needed; the vocabulary head runs on positions that predict a reply token. With `logits_tokens` it
runs on so many of them at a time, and once more for the backward pass, so that (N, V) is never whole in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.backbone.output_layer import OutputLayer, output_layer
from models.backbone.precision import Precision, computing_in, filling
from models.backbone.recomputation import recomputed
from models.backbone.trunk import goes_by_hand, states_at
from models.policy.ppo import full_kl
from models.policy.reply_chunks import ReplyChunk

if TYPE_CHECKING:
    from models.policy.critic import Critic


@dataclass(frozen=True)
class Reading:
    """What one forward pass tells about reply tokens: (B, R) each, 0 where there is no token."""

    logps: Tensor
    entropies: Tensor
    values: Tensor


@dataclass(frozen=True)
class TokenReading:
    """What a policy says of the N reply tokens of a chunk, with its gradient where one is wanted."""

    states: Tensor  # (N, D) final hidden states
    logps: Tensor  # (N,) of the tokens, in nats
    entropies: Tensor  # (N,) exact, without a gradient
    kl: Tensor | None  # (N,) exact KL to another policy, where one was given


class Policy:
    """A causal language model read at the positions that predict reply tokens."""

    logits_tokens: int | None = None
    """Reply tokens whose logits are computed at once; None: all of a chunk."""

    def __init__(
        self,
        model: Any,
        precision: Precision = "float32",
        logits_tokens: int | None = None,
        *,
        head: OutputLayer | None = None,
    ) -> None:
        """`head` is its output layer, where that can't be found by running the model."""
        self.model = model
        self.precision = precision
        self.logits_tokens = logits_tokens
        # None for families of which the way from states to logits is not known; they are run whole.
        self._head = output_layer(model) if head is None else head
        # Set to False beside a policy that can't: only the same operations give the same digits.
        self.by_hand = self._head is not None and goes_by_hand(model.base_model)

    def states_and_logits(self, chunk: ReplyChunk) -> tuple[Tensor, Tensor]:
        """Final hidden states (N, D) and logits (N, V) of the chunk's reply tokens."""
        with computing_in(self.precision, self.model.device):
            return self._states_and_logits(chunk)

    def tokens(self, chunk: ReplyChunk, kl_to: Policy | None = None) -> TokenReading:
        """States, log-probs and entropies of the chunk's reply tokens, and their KL to another policy."""
        limit = self.logits_tokens
        if limit is None or len(chunk.targets) <= limit or any(p and p._head is None for p in (self, kl_to)):
            states, logits = self.states_and_logits(chunk)
            kl = None
            if kl_to is not None:
                with torch.no_grad():
                    ref_logits = kl_to.states_and_logits(chunk)[1]
                kl = full_kl(logits, ref_logits)
            return TokenReading(states, *selected_logps(logits, chunk.targets), kl)
        states = self._filled_states(chunk)
        with torch.no_grad():
            ref_states = None if kl_to is None else kl_to._filled_states(chunk)
        parts = []
        for start in range(0, len(chunk.targets), limit):
            rows = slice(start, start + limit)
            ref_rows = None if ref_states is None else ref_states[rows]
            parts.append(recomputed(self._of_slice, states[rows], chunk.targets[rows], kl_to, ref_rows))
        logps, entropies, *kls = (torch.cat(each) for each in zip(*parts, strict=True))
        return TokenReading(states[: len(chunk.targets)], logps, entropies, kls[0] if kls else None)

    def _of_slice(
        self, states: Tensor, ids: Tensor, kl_to: Policy | None, ref_states: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Log-probs and entropies (n,) of n tokens, and their KL; of further states, which fill up, nothing."""
        logits = self._logits(states)[: len(ids)]
        found = selected_logps(logits, ids)
        if kl_to is None or ref_states is None:
            return found
        with torch.no_grad():
            ref_logits = kl_to._logits(ref_states)[: len(ids)]
        return (*found, full_kl(logits, ref_logits))

    def _logits(self, states: Tensor) -> Tensor:
        assert self._head is not None
        with computing_in(self.precision, self.model.device):
            logits: Tensor = self._head(states)
            return logits

    def _filled_states(self, chunk: ReplyChunk) -> Tensor:
        """Final hidden states of the chunk's reply tokens, and behind them of the first again, up to few sizes."""
        with computing_in(self.precision, self.model.device):
            count = len(chunk.positions)
            padding = filling(self.precision, self.model.device).tokens(count) - count
            positions = torch.cat([chunk.positions, chunk.positions[:1].expand(padding)])
            return states_at(self.model.base_model, chunk.ids, positions, hand=self.by_hand)

    def _states_and_logits(self, chunk: ReplyChunk) -> tuple[Tensor, Tensor]:
        if self._head is not None:
            count, states = len(chunk.positions), self._filled_states(chunk)
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
            found = self.tokens(chunk)
            reading.logps.view(-1)[chunk.places] = found.logps
            reading.entropies.view(-1)[chunk.places] = found.entropies
            if critic is not None:
                reading.values.view(-1)[chunk.places] = critic(chunk, found.states)
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
