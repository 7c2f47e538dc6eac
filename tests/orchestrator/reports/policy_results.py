"""Results of PPO and of evaluations, whole, with what a test says about them."""

from __future__ import annotations

from typing import Any

from models.policy.results import CurvePoint, Evaluation, PPOResult

BARE_PPO = PPOResult(optimiser_steps=1, samples=24, kl_nats=1.0, score_start=0.0, score_end=1.0)
"""What every run has, of whatever age."""


def points(count: int) -> tuple[CurvePoint, ...]:
    """A curve of so many points, whatever they say."""
    return tuple(CurvePoint(samples=8 * i, kl_nats=0.1 * i, score=float(i)) for i in range(count))


def evaluation(**said: Any) -> Evaluation:
    """An evaluation with a score of 1."""
    return Evaluation(**({"pm_score": 1.0, "pm_score_ci": (0.5, 1.5), "kl_nats": 1.0} | said))
