"""The maths of out-of-distribution detectors: how far a vector lies from those of the prompts that a policy knows.

Pure functions of arrays, in float64. Scores grow with the distance; only their order and the threshold have a meaning.
`models/detectors/detector.py` reads the vectors off a model, `models/detectors/fitting.py` chooses layer and threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_MAX_STEPS = 500


class Gaussian(NamedTuple):
    """Mean (D) and Cholesky factor (D x D, lower) of the shrunk covariance of N vectors, and how much it was shrunk."""

    mean: Tensor
    cholesky: Tensor
    shrinkage: float


def ledoit_wolf(states: Tensor) -> tuple[Tensor, Tensor, float]:
    """(mean, covariance, shrinkage) of N x D vectors: their covariance, drawn towards a multiple of the identity.

    The share of the identity is the one that minimises the expected squared error, so that it can be inverted with
    fewer vectors than dimensions and needs no setting.

    Source: Ledoit and Wolf 2004, J. Multivariate Anal. 88, 365-411, lemma 3.2 and 3.3.

    Raises:
        ValueError: fewer than two vectors.
    """
    number, size = states.shape
    if number < 2:
        raise ValueError(f"{number} vectors; a covariance needs at least 2")
    states = states.double()
    mean = states.mean(0)
    centred = states - mean
    empirical = centred.T @ centred / number
    scale = empirical.diagonal().mean()
    # Squared Frobenius norms over D: of the distance to the target, and of the error of the empirical covariance.
    distance = (empirical.square().sum() - size * scale**2) / size
    error = (centred.square().sum(1).square().mean() - empirical.square().sum()) / (number * size)
    shrinkage = 0.0 if error <= 0 or distance <= 0 else min(1.0, float(error / distance))
    identity = torch.eye(size, dtype=states.dtype, device=states.device)
    return mean, (1 - shrinkage) * empirical + shrinkage * scale * identity, shrinkage


def fit_gaussian(states: Tensor) -> Gaussian:
    """The Gaussian of N x D vectors.

    Raises:
        ValueError: fewer than two vectors, or vectors that differ in no direction.
    """
    mean, covariance, shrinkage = ledoit_wolf(states)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed.item():
        raise ValueError(f"the covariance of {len(states)} vectors can't be inverted: they are too much alike")
    return Gaussian(mean, factor, shrinkage)


def mahalanobis(states: Tensor, mean: Tensor, cholesky: Tensor) -> Tensor:
    """B squared distances of B x D vectors from the mean, in standard deviations of the direction they lie in.

    With mean 0 and covariance diag(1, 1/4) the vector (3, 1) has 9 + 4 = 13.

    Source: Lee et al. 2018, arXiv:1807.03888; paper.md [94].
    """
    centred = (states.double() - mean).T
    return torch.linalg.solve_triangular(cholesky, centred, upper=False).square().sum(0)


def relative_mahalanobis(states: Tensor, mean: Tensor, cholesky: Tensor) -> Tensor:
    """B squared distances less what they would be if the D numbers were independent; may be negative.

    What is large in one number alone does not count; what breaks the way the numbers go together does.

    Source: Bai et al. 2022, arXiv:2204.05862 ("simplified relative Mahalanobis"); paper.md [95].
    """
    variances = cholesky.square().sum(1)
    independent = ((states.double() - mean).square() / variances).sum(1)
    return mahalanobis(states, mean, cholesky) - independent


def fit_exposure(home: Tensor, examples: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """(weight (D), bias ()) of a logistic regression that tells M examples of harm from N vectors of home.

    Each example counts N // M times, as if repeated. To the mean loss comes l2 / 2 times the squared norm of the
    weight (of vectors in standard deviations of home): few examples can be told apart perfectly, and without the
    penalty the weight would have no end.

    Raises:
        ValueError: no example, more examples than vectors of home, or a penalty that is not positive.

    Source: Bai et al. 2022, arXiv:2204.05862 (after Fort et al. 2021, arXiv:2106.03004); paper.md [96].
    """
    number, few = len(home), len(examples)
    if not 0 < few <= number:
        raise ValueError(f"{few} examples and {number} vectors of home; expected one to as many as home has")
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; expected a positive number")
    mean, deviation = home.double().mean(0), home.double().std(0).clamp_min(1e-12)
    vectors = (torch.cat([home, examples]).double() - mean) / deviation
    labels = torch.cat([home.new_zeros(number), home.new_ones(few)]).double()
    counts = torch.where(labels > 0, float(number // few), 1.0).double()
    counts /= counts.sum()
    weight = vectors.new_zeros(vectors.shape[1], requires_grad=True)
    bias = vectors.new_zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        with torch.enable_grad():
            value = F.binary_cross_entropy_with_logits(vectors @ weight + bias, labels, counts, reduction="sum")
            value = value + l2 / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[arg-type]
    # Back to vectors as they come off the model.
    plain = weight.detach() / deviation
    return plain, bias.detach() - plain @ mean


def exposure_logit(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """B log-odds that a vector is like the examples. Not the probability, which rounds to 1 where it matters."""
    return states.double() @ weight + bias


def auroc(home: Tensor, far: Tensor) -> float:
    """Probability that a score of `far` is above one of `home`, ties counting half; 0.5 tells nothing.

    Raises:
        ValueError: one of them is empty.
    """
    if not len(home) or not len(far):
        raise ValueError(f"{len(home)} scores of home and {len(far)} others; an AUROC needs both")
    ordered = home.double().sort().values
    below = torch.searchsorted(ordered, far.double().contiguous(), right=False)
    not_above = torch.searchsorted(ordered, far.double().contiguous(), right=True)
    return float((below + not_above).double().mean() / (2 * len(home)))
