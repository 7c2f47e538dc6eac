"""The ranking loss of a preference model and the numbers read off score gaps, as pure functions.

Read next: `models/preference/training.py`, which minimises this loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.preference.pairs import TokenPair

TIE_TARGET = 0.5  # neither side is the better one


def preference_loss(
    better_scores: Tensor, worse_scores: Tensor, weights: Tensor | None = None, targets: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood that raters prefer the better reply.

    The score difference is a log-odds in nats: a gap of 1.0 predicts that the
    better reply wins 73% of the time, a gap of 0 gives log 2 = 0.693. `weights`
    multiply the pairs' terms; the divisor stays the number of pairs, so weights
    whose mean is 1 leave the scale of the loss as it is.

    `targets` are probabilities t that the better reply is the better one, 1 where not
    given: the term is the cross-entropy −t·log σ(gap) − (1 − t)·log σ(−gap), smallest
    at gap = log(t / (1 − t)). A tie is t = 0.5, whose term is smallest at gap 0.

    Shapes: all arguments N; the result is a scalar.

    Raises:
        ValueError: no pairs (the mean would be NaN and poison the optimiser), or shapes that differ.

    Source: Askell et al. 2021, arXiv:2112.00861 (ranked preference modelling).
    """
    if better_scores.numel() == 0:
        raise ValueError("Preference loss of 0 pairs; it needs at least one.")
    if better_scores.shape != worse_scores.shape:
        raise ValueError(
            f"Scores of the better replies have shape {tuple(better_scores.shape)}, "
            f"of the worse ones {tuple(worse_scores.shape)}; they must be equal."
        )
    gaps = better_scores - worse_scores
    losses = -F.logsigmoid(gaps)
    if targets is not None:
        if targets.shape != losses.shape:
            raise ValueError(f"{tuple(targets.shape)} targets for {tuple(losses.shape)} pairs.")
        losses = targets * losses - (1.0 - targets) * F.logsigmoid(-gaps)
    if weights is not None:
        if weights.shape != losses.shape:
            raise ValueError(f"{tuple(weights.shape)} weights for {tuple(losses.shape)} pairs.")
        losses = losses * weights
    return losses.mean()


def question_weights(questions: Iterable[str], harmless_weight: float) -> Tensor:
    """One weight per pair such that the objective is L_helpful + harmless_weight · L_harmless.

    Scaled to mean 1 over the given pairs, so that the learning rate keeps its
    meaning when the weight is raised. Give the whole training set, not a batch:
    scaled batch by batch, batches rich in harmless pairs would count less. Soft
    targets change a pair's term and not its weight.

    Source: arXiv:2204.05862, section 4.3 (loss weighting).
    """
    raw = torch.tensor([harmless_weight if q == "harmless" else 1.0 for q in questions], dtype=torch.float64)
    if raw.numel() == 0 or raw.sum() <= 0:
        raise ValueError("Every pair would have weight 0; raise harmless_weight or add helpful comparisons.")
    return (raw / raw.mean()).to(torch.float32)


def ordered_rightly(gaps: Iterable[float]) -> list[float]:
    """For each pair 1 where it is ordered rightly, given score(better) − score(worse), else 0; a gap of 0 gives 1/2."""
    return [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]


def soft_target(pair: TokenPair, by_strength: Sequence[float], unknown: float) -> float:
    """Probability that the better side is the better one: by strength, `unknown` without one, 0.5 for a tie."""
    if pair.tie is not None:
        return TIE_TARGET
    return unknown if pair.strength is None else by_strength[pair.strength - 1]


def soft_targets(pairs: Sequence[TokenPair], by_strength: Sequence[float], unknown: float) -> Tensor:
    """One target per pair, N, float32."""
    return torch.tensor([soft_target(pair, by_strength, unknown) for pair in pairs], dtype=torch.float32)
