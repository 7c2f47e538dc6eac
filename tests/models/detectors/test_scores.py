"""The maths of out-of-distribution detectors: by hand, and what scores may not depend on."""

from __future__ import annotations

import math

import pytest
import torch

from models.detectors.scores import (
    auroc,
    exposure_logit,
    fit_exposure,
    fit_gaussian,
    ledoit_wolf,
    mahalanobis,
    relative_mahalanobis,
)

# float64 throughout; what is left is rounding of a few dozen sums.
ROUNDING = 1e-9
# The optimiser of the exposure detector stops at this size of gradient.
GRADIENT = 1e-6


def spread(number: int = 200, size: int = 6, seed: int = 0) -> torch.Tensor:
    """Vectors whose numbers go together: a random mixture of independent ones."""
    generator = torch.Generator().manual_seed(seed)
    mixture = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(number, size, generator=generator, dtype=torch.float64) @ mixture + 3


def rotation(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def test_shrinkage_by_hand() -> None:
    # (±2, 0), (0, ±1), D = 2: S = diag(8/4, 2/4) = diag(2, 1/2), and the target is their mean, 5/4 of the identity.
    # distance to it: ((2 - 5/4)² + (1/2 - 5/4)²) / 2 = 9/16.
    # error of S: mean |x|⁴ = (16 + 16 + 1 + 1) / 4 = 17/2, less |S|² = 17/4, over D·N = 8: 17/32.
    # shrinkage (17/32) / (9/16) = 17/18; S* = 1/18 · (2, 1/2) + 17/18 · 5/4 = (31/24, 29/24).
    states = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    mean, covariance, shrinkage = ledoit_wolf(states + torch.tensor([10.0, -7.0]))
    assert shrinkage == pytest.approx(17 / 18, abs=ROUNDING)
    assert torch.allclose(mean, torch.tensor([10.0, -7.0], dtype=torch.float64), atol=ROUNDING)
    expected = torch.diag(torch.tensor([31 / 24, 29 / 24], dtype=torch.float64))
    assert torch.allclose(covariance, expected, atol=ROUNDING)


def test_shrinkage_vanishes_with_many_vectors_and_makes_few_invertible() -> None:
    _, _, few = ledoit_wolf(spread(10, size=30))
    _, _, many = ledoit_wolf(spread(100_000, size=6))
    assert few > 0.1
    assert many < 1e-3
    assert torch.isfinite(fit_gaussian(spread(10, size=30)).cholesky).all()
    with pytest.raises(ValueError, match="at least 2"):
        ledoit_wolf(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="too much alike"):
        fit_gaussian(torch.ones(5, 4))


def test_distances_by_hand() -> None:
    # Covariance diag(1, 1/4), mean (1, -1). (4, 0) is (3, 1) away: 9/1 + 1/(1/4) = 13; the mean itself is at 0.
    mean, cholesky = torch.tensor([1.0, -1.0]).double(), torch.diag(torch.tensor([1.0, 0.5])).double()
    states = torch.tensor([[4.0, 0.0], [1.0, -1.0], [-2.0, -2.0]])
    assert mahalanobis(states, mean, cholesky).tolist() == [13.0, 0.0, 13.0]
    # The numbers are independent, so that nothing is left of the relative distance.
    assert relative_mahalanobis(states, mean, cholesky).tolist() == [0.0, 0.0, 0.0]


def test_relative_distance_by_hand() -> None:
    # Covariance [[1, 3/5], [3/5, 1]], inverse 1/(16/25) · [[1, -3/5], [-3/5, 1]] = [[25/16, -15/16], [-15/16, 25/16]].
    # Along the correlation (1, 1): 2·25/16 - 2·15/16 = 5/4, less 1 + 1: -3/4. Against it (1, -1): 5, less 2: 3.
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    cholesky, mean = torch.linalg.cholesky(covariance), torch.zeros(2, dtype=torch.float64)
    states = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    assert mahalanobis(states, mean, cholesky).tolist() == pytest.approx([1.25, 5.0], abs=ROUNDING)
    assert relative_mahalanobis(states, mean, cholesky).tolist() == pytest.approx([-0.75, 3.0], abs=ROUNDING)


def test_distances_do_not_depend_on_where_home_lies_or_how_it_is_turned() -> None:
    home, asked = spread(), spread(20, seed=5)
    plain = fit_gaussian(home)
    expected = mahalanobis(asked, plain.mean, plain.cholesky)
    turn = rotation(home.shape[1])

    def turned(states: torch.Tensor) -> torch.Tensor:
        return 7 * states @ turn - 4

    other = fit_gaussian(turned(home))
    assert other.shrinkage == pytest.approx(plain.shrinkage, abs=ROUNDING)
    assert torch.allclose(mahalanobis(turned(asked), other.mean, other.cholesky), expected, rtol=1e-8)
    # The relative distance knows the axes: it may be mirrored and permuted, but not turned.
    relative = relative_mahalanobis(asked, plain.mean, plain.cholesky)
    order, signs = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([1.0, -1, 1, 1, -1, -1]).double()
    mirrored = fit_gaussian(home[:, order] * signs)
    moved = relative_mahalanobis(asked[:, order] * signs, mirrored.mean, mirrored.cholesky)
    assert torch.allclose(moved, relative, rtol=1e-8)
    assert not torch.allclose(relative_mahalanobis(turned(asked), other.mean, other.cholesky), relative, rtol=1e-2)


def test_the_mean_distance_of_home_is_its_dimension_without_shrinkage() -> None:
    # mean x'S⁻¹x over the vectors that S was made of is the trace of S⁻¹S: D, exactly, where nothing is shrunk.
    home = spread(50_000, size=5)
    gaussian = fit_gaussian(home)
    assert float(mahalanobis(home, gaussian.mean, gaussian.cholesky).mean()) == pytest.approx(5, rel=1e-2)


def test_exposure_is_the_optimum_of_the_repeated_examples() -> None:
    home, examples = spread(40, size=3), spread(6, size=3, seed=9) + 1
    l2 = 0.01
    weight, bias = fit_exposure(home, examples, l2)
    # Written out: each of the 6 examples stands there 40 // 6 = 6 times, and the gradient of the mean loss vanishes.
    deviation = home.std(0)
    vectors = torch.cat([home, examples.repeat(6, 1)])
    labels = torch.cat([torch.zeros(40), torch.ones(36)]).double()
    free = (weight * deviation).requires_grad_()
    offset = bias.clone().requires_grad_()
    logits = vectors @ (free / deviation) + offset
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels) + l2 / 2 * free.square().sum()
    loss.backward()
    assert free.grad is not None
    assert offset.grad is not None
    assert float(free.grad.abs().max()) < GRADIENT
    assert abs(float(offset.grad)) < GRADIENT


def test_exposure_does_not_depend_on_the_scale_of_the_vectors_and_finds_a_stranger() -> None:
    home, examples = spread(100, size=4), spread(5, size=4, seed=2) + 8
    asked = torch.cat([home[:1], examples[:1] + 0.5])
    near, far = exposure_logit(asked, *fit_exposure(home, examples, 1e-3)).tolist()
    assert near < 0 < far
    stretched = exposure_logit(asked * 100 + 1, *fit_exposure(home * 100 + 1, examples * 100 + 1, 1e-3))
    assert stretched.tolist() == pytest.approx([near, far], rel=1e-4)


def test_exposure_needs_examples_but_no_more_than_home_has() -> None:
    home = spread(5, size=3)
    for examples in (home[:0], spread(6, size=3)):
        with pytest.raises(ValueError, match="examples and 5 vectors"):
            fit_exposure(home, examples, 1e-3)
    with pytest.raises(ValueError, match="positive"):
        fit_exposure(home, home[:2], 0.0)


def test_auroc_by_hand() -> None:
    home, far = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 5.0])
    # 2 lies above one of four and beside one: 1.5; 5 above all four: 4. Together 5.5 of 8.
    assert auroc(home, far) == 5.5 / 8
    assert auroc(far, home) == 1 - 5.5 / 8
    assert auroc(home, home) == 0.5
    # Only the order counts.
    assert auroc(home.exp(), far.exp()) == 5.5 / 8
    with pytest.raises(ValueError, match="needs both"):
        auroc(home, far[:0])
    assert not math.isnan(auroc(home, far))
