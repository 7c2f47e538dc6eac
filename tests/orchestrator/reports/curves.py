"""Curves of PPO whose law is known."""

from __future__ import annotations

from models.policy.results import CurvePoint


def curve(bend: int, points: int = 21, *, watcher: float | None = None) -> list[CurvePoint]:
    """√KL 0, 0.2, 0.4 …; the score is 1 + 2·√KL up to a point and flat from there; the watcher sees a share of it."""
    rows: list[CurvePoint] = []
    for i in range(points):
        root = 0.2 * i
        # A ripple of 0.001 that sums to nothing: an exact line has no residuals to test anything with.
        score = 1.0 + 2.0 * min(root, 0.2 * bend) + 0.001 * (-1) ** i
        seen = None if watcher is None else 1.0 + watcher * (score - 1.0)
        rows.append(CurvePoint(samples=64 * i, kl_nats=root**2, score=score, score_watcher=seen))
    return rows
