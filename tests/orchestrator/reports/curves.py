"""Curves of PPO whose law is known."""

from __future__ import annotations

from typing import Any


def curve(bend: int, points: int = 21, *, watcher: float | None = None) -> list[dict[str, Any]]:
    """√KL 0, 0.2, 0.4 …; the score is 1 + 2·√KL up to a point and flat from there; the watcher sees a share of it."""
    rows: list[dict[str, Any]] = []
    for i in range(points):
        root = 0.2 * i
        # A ripple of 0.001 that sums to nothing: an exact line has no residuals to test anything with.
        score = 1.0 + 2.0 * min(root, 0.2 * bend) + 0.001 * (-1) ** i
        rows.append({"samples": 64 * i, "kl_nats": root**2, "score": score})
        if watcher is not None:
            rows[-1]["score_watcher"] = 1.0 + watcher * (score - 1.0)
    return rows
