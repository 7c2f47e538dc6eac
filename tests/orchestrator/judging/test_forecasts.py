"""Preference models beside each other: which of the ledger are used, and what the report says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.judging.forecasts import Scaling, mix_matrix, scaling
from orchestrator.reports.numbers import CycleNumbers
from orchestrator.reports.pictures.catalogue import draw_all
from orchestrator.reports.preference_models import matrix_lines, scaling_rows
from tests.db.rows import add_artifact, add_cycle


def add_model(
    session: Session,
    num_train: int,
    parameters: int = 10**6,
    mix: tuple[str, ...] = ("helpful",),
    cycle: t.Cycle | None = None,
    initial: t.Artifact | None = None,
    sources: tuple[str, ...] = ("world",),
    **settings: Any,
) -> t.Artifact:
    """A preference model whose accuracy lies on 0.4 + 0.03·ln(comparisons)."""
    accuracy = 0.4 + 0.03 * math.log(num_train)
    asked = {"accuracy": accuracy, "ci": [accuracy - 0.05, accuracy + 0.05], "n": 400}
    results = {
        "num_parameters": parameters,
        "num_train": num_train,
        "trained_on": sorted(mix),
        "held_out": asked | {"by_question": dict.fromkeys(mix, asked), "by_source": dict.fromkeys(sources, asked)},
        "learning_curve": [
            {"comparisons": d, "accuracy": 0.4 + 0.02 * math.log(d), "ci": [0, 1], "n": 200} for d in (50, 100, 200)
        ],
    }
    fields = {"results": results, "settings": {"settings": settings}, "cycle_id": cycle.id if cycle else None}
    model = add_artifact(session, "preference_model", **fields)
    if initial is not None:
        session.add(t.LineageEdge(child_id=model.id, role="initial", parent_id=initial.id))
        session.flush()
    return model


def test_the_ledger_is_used_where_models_differ_enough_and_the_learning_curve_else(session: Session):
    first, second = add_model(session, 500), add_model(session, 1000)
    found = scaling(session, second)
    assert found is not None
    assert found.source == "the learning curve of this preference model"
    assert found.c is not None
    assert found.c.value == pytest.approx(0.02)
    # The curve's last block is at 200; the model was trained on 1,000.
    forecast = found.forecast.twice_the_comparisons
    assert forecast is not None
    assert forecast.accuracy.value == pytest.approx(0.4 + 0.02 * math.log(2000))
    third = add_model(session, 2000)
    # Neither a control, nor a twin, nor a later model plays a part.
    add_model(session, 4000, shuffle_labels=True)
    add_model(session, 8000, part="watcher")
    fourth = add_model(session, 4000)
    found = scaling(session, third)
    assert found is not None
    assert found.source == "the preference models of the ledger"
    assert [point.comparisons for point in found.points] == [500, 1000, 2000]
    assert found.c is not None
    assert found.c.value == pytest.approx(0.03)
    found = scaling(session, fourth)
    assert found is not None
    assert [point.comparisons for point in found.points] == [500, 1000, 2000, 4000]
    assert first.id < fourth.id


def test_the_report_tells_the_gain_and_why_there_is_none(session: Session):
    for number in (500, 1000):
        add_model(session, number)
    found = scaling(session, add_model(session, 2000))
    assert found is not None
    rows = dict(scaling_rows(found))
    # 0.03·ln 2 = 0.0208; 0.4 + 0.03·ln 4000 = 0.649.
    assert rows["Twice the comparisons"].startswith("+0.021 [")
    assert ", to 0.649 [" in rows["Twice the comparisons"]
    assert rows["A PM 4 times as big"] == "not identifiable: 1 size, 3 are needed"
    assert [picture.name for picture in draw_all(CycleNumbers(cycle=1, name="x", scaling=found))] == ["scaling"]
    assert scaling_rows(None) == []


def test_the_report_gives_no_forecast_from_which_anything_is_possible(session: Session):
    for number in (500, 1000):
        add_model(session, number)
    found = scaling(session, add_model(session, 2000))
    assert found is not None

    def with_accuracy_within(low: float, high: float) -> Scaling:
        assert found is not None
        forecast = found.forecast.twice_the_comparisons
        assert forecast is not None
        accuracy = replace(forecast.accuracy, ci=(low, high))
        asked = replace(found.forecast, twice_the_comparisons=replace(forecast, accuracy=accuracy))
        return replace(found, forecast=asked)

    said = "can't be said yet: any accuracy from 0 to 1 is possible, by the preference models of the ledger"
    assert dict(scaling_rows(with_accuracy_within(-2.462, 3.557)))["Twice the comparisons"] == said
    rows = dict(scaling_rows(with_accuracy_within(0.1, 3.557)))
    assert ", to 0.649 [0.100, 3.557]" in rows["Twice the comparisons"]


def test_models_that_differ_in_more_than_size_and_comparisons_do_not_change_the_fit(session: Session):
    # Half of an old row's settings are missing; they had their defaults. A tuned learning rate is no difference.
    given: dict[str, Any] = {"cycle": add_cycle(session, "promoted"), "initial": add_artifact(session)}
    add_model(session, 500, **given)
    add_model(session, 1000, **given, harmless_weight=1.0, learning_rate=0.1)
    add_model(session, 2000, parameters=4 * 10**6, cycle=given["cycle"], initial=add_artifact(session))
    alone = scaling(session, add_model(session, 4000, **given))
    assert alone is not None
    assert [point.comparisons for point in alone.points] == [500, 1000, 2000, 4000]
    assert alone.left_out == {}
    assert "… not used for this" not in dict(scaling_rows(alone))

    other = add_cycle(session, "promoted", name="another project")
    add_model(session, 300, **given | {"cycle": other})
    add_model(session, 350, **given | {"initial": add_artifact(session)})
    add_model(session, 600, **given, harmless_weight=3.0)
    add_model(session, 650, **given, harmless_weight=3.0)
    add_model(session, 700, **given, mix=("harmless",))
    add_model(session, 750, **given, sources=("world", "second"))
    with_others = scaling(session, add_model(session, 4000, **given))
    assert with_others is not None
    again = scaling(session, add_model(session, 4000, **given))
    assert again is not None
    assert [point.comparisons for point in with_others.points] == [500, 1000, 2000, 4000, 4000]
    assert with_others.c is not None
    assert with_others.c.value == pytest.approx(0.03)
    assert again.left_out == with_others.left_out == {
        "harmless_weight": 2, "initial policy": 1, "project": 1, "questions": 1, "sources": 1,
    }  # fmt: skip
    assert dict(scaling_rows(again))["… not used for this"] == (
        "6 preference models of the ledger (other harmless_weight: 2, other initial policy: 1, other project: 1, "
        "other questions: 1, other sources: 1)"
    )


def test_each_mix_has_the_row_of_its_newest_model_and_what_nobody_measured_says_so(session: Session):
    add_model(session, 500, mix=("helpful",))
    add_model(session, 600, mix=("helpful",))
    # Neither of another size, nor with other targets: these differ in more than the mix.
    add_model(session, 700, mix=("helpful",), parameters=4 * 10**6)
    add_model(session, 800, mix=("helpful",), targets="soft")
    found = mix_matrix(session, both := add_model(session, 900, mix=("helpful", "harmless"), harmless_weight=2.0))
    assert found is not None
    matrix = found.rows
    newest = matrix["helpful"]["helpful"]
    assert newest is not None
    assert newest.accuracy == pytest.approx(0.4 + 0.03 * math.log(600))
    assert matrix["helpful"]["harmless"] is None
    assert matrix["harmless"] == {"helpful": None, "harmless": None}
    own = matrix["both"]["harmless"]
    assert own is not None
    assert own.accuracy == both.results["held_out"]["accuracy"]
    text = "\n".join(matrix_lines(found))
    assert "| helpful | 0.592 [0.542, 0.642] (n = 400) | not measured |" in text
    assert "| harmless | not measured | not measured |" in text
    assert "Not used for this: 2 preference models of the ledger (other size: 1, other targets: 1)." in text
    assert matrix_lines(None) == []


def test_models_of_before_have_no_figures_to_compare(session: Session):
    measured = {"accuracy": 0.5, "ci": [0.2, 0.8], "n": 6, "by_source": {}, "by_question": {}}
    model = add_artifact(session, "preference_model", results={"held_out": measured, "num_train": 5})
    assert mix_matrix(session, model) is None
    assert scaling(session, model) is None
