"""Random numbers that depend on (seed, position) alone, and the choice of a token with them.

A reply's randomness is a pure function of its seed and of how many tokens it already has, so
that it does not depend on the other replies of its batch, and a resumed job samples the same.
"""

import torch
from torch import Tensor


def choose_tokens(logits: Tensor, uniform: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        logits: (B, V) float32.
        uniform: (B,) numbers in [0, 1).
        temperature: (B,) of at least 0; 0 takes the likeliest token. It and `top_p` are looked at here, which does not
            wait for a GPU where they lie on the CPU.
        top_p: (B,) in (0, 1]; below 1, only the fewest likeliest tokens that together hold
            that share can be drawn.

    Returns:
        ids (B,) and their log-probs (B,) under the model itself, that is at temperature 1
        and without top-p, whatever they were drawn with.
    """
    plain, narrowed = bool((temperature == 1).all()), (top_p < 1).nonzero()[:, 0]
    if plain and not len(narrowed):
        return drawn_plainly(logits, uniform)
    narrowed = narrowed.to(logits.device)
    temperature, top_p = temperature.to(logits.device), top_p.to(logits.device)
    logps = torch.log_softmax(logits, dim=-1)
    if plain:
        probs = logps.exp()
    else:
        # A row at temperature 0 is overwritten below; 1 only keeps its division finite.
        divisor = torch.where(temperature > 0, temperature, torch.ones_like(temperature))
        probs = torch.softmax(logits / divisor[:, None], dim=-1)
    if len(narrowed):
        probs[narrowed] = _keep_top(probs[narrowed], top_p[narrowed])
    ids = _drawn(probs.cumsum(dim=-1), uniform)[:, 0]
    if not plain:
        ids = torch.where(temperature > 0, ids, logits.argmax(dim=-1))
    return ids, logps.gather(1, ids[:, None])[:, 0]


def drawn_plainly(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """`choose_tokens` where every row has temperature 1 and no top-p."""
    # What the draw sums up is also what the log-probs are divided by: one pass of exponentials in place of two.
    peaks = logits.amax(dim=-1, keepdim=True)
    cumulative = (logits - peaks).exp_().cumsum(dim=-1)
    ids = _drawn(cumulative, uniform)
    return ids[:, 0], (logits.gather(1, ids) - peaks - cumulative[:, -1:].log())[:, 0]


def _drawn(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """One token a row, (B, 1), from cumulative weights (B, V), whose total may be any positive number."""
    total = cumulative[:, -1:]
    # The first token whose cumulative weight exceeds the target. `right=True` passes over tokens of weight zero; the
    # target must stay below the total, which rounding could reach.
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)


def _keep_top(probs: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the fewest likeliest tokens that reach the share `top_p`; (B, V) and (B,)."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = torch.where(before < top_p[:, None], ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probs).scatter_(1, order, ordered)
