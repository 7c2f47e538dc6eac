"""Results of jobs: what is written is what is read, and what is not as it should be is named with its path."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from models.runtime.results import IF_MEASURED, ResultError, part_to_json, result_from_json, result_to_json

WHERE = "the results of artifact 41"


@dataclass(frozen=True)
class Point:
    samples: int
    kl_nats: float
    score_watcher: float | None = field(default=None, metadata=IF_MEASURED)


@dataclass(frozen=True)
class Found:
    name: str
    curve: tuple[Point, ...]
    ci: tuple[float | None, float | None]
    by_kind: Mapping[str, Point]
    state: Literal["running", "ended"] = "ended"
    stopped: str | None = None
    best: Point | None = field(default=None, metadata=IF_MEASURED)
    settings: dict[str, Any] | None = None


FOUND = Found(
    name="run",
    curve=(Point(0, 0.0), Point(64, 0.25, score_watcher=-1.5)),
    ci=(None, 2.0),
    by_kind={"helpful": Point(1, 2.0)},
    stopped="KL was too high",
    settings={"anything": [1, None]},
)


def test_what_is_written_is_what_is_read() -> None:
    written = json.loads(json.dumps(result_to_json(FOUND)))
    assert written["version"] == 2
    assert result_from_json(Found, written, where=WHERE) == FOUND
    assert "version" not in part_to_json(FOUND)


def test_what_was_not_asked_for_is_not_written_and_what_is_not_there_is_none() -> None:
    written = result_to_json(FOUND)
    assert "best" not in written
    assert "stopped" in result_to_json(Found("x", (), (0.0, 1.0), {}))
    assert [set(point) for point in written["curve"]] == [
        {"samples", "kl_nats"},
        {"samples", "kl_nats", "score_watcher"},
    ]


def test_results_of_another_version_are_read() -> None:
    older = {"name": "run", "curve": [], "ci": [0, 1], "by_kind": {}}
    assert result_from_json(Found, older, where=WHERE) == Found("run", (), (0.0, 1.0), {})
    newer = older | {"version": 3, "measured_since": {"a": 1}}
    assert result_from_json(Found, newer, where=WHERE) == Found("run", (), (0.0, 1.0), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curve": [{"samples": 1, "kl_nats": 0}, {"samples": 1, "kl_nat": 0}]},
         "have no `curve[1].kl_nats`; found kl_nat, samples. Expected it in every Point."),
        ({"curve": [{"samples": 1.5, "kl_nats": 0}]}, "have `curve[0].samples` = 1.5; expected int."),
        ({"curve": [{"samples": True, "kl_nats": 0}]}, "have `curve[0].samples` = True; expected int."),
        ({"curve": [{"samples": 1, "kl_nats": "0"}]}, "have `curve[0].kl_nats` = '0'; expected float."),
        ({"curve": {}}, "have `curve` = {}; expected tuple["),
        ({"ci": [1.0]}, "have `ci` = [1.0]; expected tuple[float | None, float | None]."),
        ({"by_kind": {"helpful": None}}, "have `by_kind.helpful` = None; expected an object (Point)."),
        ({"best": {"samples": 1, "kl_nats": True}}, "have `best.kl_nats` = True; expected float."),
        ({"state": "dead"}, "have `state` = 'dead'; expected Literal['running', 'ended']."),
        ({"stopped": 1}, "have `stopped` = 1; expected str."),
        ({"name": None}, "have `name` = None; expected str."),
    ],
)  # fmt: skip
def test_what_is_not_as_it_should_be_is_named_with_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultError) as error:
        result_from_json(Found, result_to_json(FOUND) | change, where=WHERE)
    assert str(error.value).startswith(f"{WHERE} {message}")


def test_a_number_that_was_not_finite_is_one_no_more_and_no_error() -> None:
    point = result_from_json(Point, {"samples": 1, "kl_nats": None, "score_watcher": None}, where=WHERE)
    assert math.isnan(point.kl_nats)
    assert point.score_watcher is None
    assert part_to_json(Point(1, math.inf)) == part_to_json(point) == {"samples": 1, "kl_nats": None}


def test_results_that_are_no_object_are_refused() -> None:
    with pytest.raises(ResultError, match=r"artifact 41 have \[\]; expected an object \(Found\)\.$"):
        result_from_json(Found, [], where=WHERE)  # type: ignore[arg-type]
