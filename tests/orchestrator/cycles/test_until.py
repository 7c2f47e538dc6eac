"""How far a run goes that was asked for one stage."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable

import pytest

from flows import cycle
from orchestrator.cycles.until import STAGES, Stage, Until
from orchestrator.errors import CyclePaused


def taken(until: Until, names: Iterable[str]) -> tuple[list[tuple[str, bool]], str]:
    """The stages that a run takes, each with whether it is done anew, and why it ended before the last."""
    done = []
    try:
        for name in names:
            options = {"fresh": False}
            until.begin(name, options)
            done.append((name, options["fresh"]))
            until.end(name)
    except CyclePaused as paused:
        return done, str(paused)
    return done, ""


def in_the_loop() -> list[str]:
    """The stages that a cycle takes until its decision, as the loop names them, in its order."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(cycle.take_stages))) if isinstance(node, ast.Call)]
    taken = [
        (call.lineno, call.args[0].attr)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("stage", "on_gpu")
        and isinstance(call.args[0], ast.Attribute)
    ]
    return [name for _, name in sorted(taken)]


def test_the_stages_are_those_of_the_loop_in_its_order() -> None:
    names = [name.replace("_", " ") for name in in_the_loop()]
    assert [name for name in names if name != "measure elo"] == [*STAGES, "decide promotion"]


@pytest.mark.parametrize("asked", STAGES)
def test_a_run_ends_after_the_stage_that_it_was_asked_for(asked: Stage) -> None:
    done, why = taken(Until(asked), in_the_loop())
    assert done[-1][0].replace("_", " ") == asked
    assert why == f"{asked} is done."


def test_that_stage_alone_is_done_anew() -> None:
    done, _ = taken(Until("train policy", fresh=True), ["check_data", "train-policy", "evaluate-policies"])
    assert done == [("check_data", False), ("train-policy", True)]


def test_a_stage_that_the_configuration_does_not_have_ends_the_run_before_the_next() -> None:
    done, why = taken(Until("write prompts"), ["measure_elo", "build_prompts", "train-policy"])
    assert [name for name, _ in done] == ["measure_elo", "build_prompts"]
    assert why == "The cycle's configuration has no stage write prompts; all before it is done."


def test_a_run_that_was_asked_for_none_goes_to_the_end() -> None:
    names = [*STAGES, "decide_promotion"]
    assert taken(Until(), names) == ([(name, False) for name in names], "")
