"""When nothing is at work in a cycle, by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.idle_time import idle_of
from db import tables as t

START = datetime(2026, 1, 5, tzinfo=UTC)


def stage(name: str, begin: float, end: float, job: float | None = None) -> t.Stage:
    return t.Stage(
        name=name,
        started_at=START + timedelta(seconds=begin),
        ended_at=START + timedelta(seconds=end),
        job_seconds=job,
    )


def test_idle_is_between_stages_and_while_jobs_wait() -> None:
    found = idle_of(
        [
            stage("freeze", 0, 1),
            stage("train", 3, 13, job=6),  # 2 s after the freeze; 4 s of its own
            stage("evaluate", 14, 24, job=9),
            stage("evaluate_live", 15, 20, job=5),  # beside the other
            stage("report", 26, 30),
        ]
    )
    assert (found.stages, found.seconds) == (5, 30.0)
    assert found.between == pytest.approx(2 + 1 + 2)
    assert found.waiting == pytest.approx(4 + 1 + 0)
    assert found.most == (pytest.approx(4.0), "train")
    assert found.per_stage == pytest.approx(2.0)
    assert found.share == pytest.approx(1 / 3)
