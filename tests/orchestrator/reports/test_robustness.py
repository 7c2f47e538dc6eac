"""The robustness experiment's arithmetic and report, on numbers worked by hand; the whole flow is in tests/flows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from models.policy.results import JudgedReply
from models.runtime.results import part_to_json, result_from_json, result_to_json
from orchestrator.config import parse_config
from orchestrator.judging.robustness import (
    Gain,
    JudgedPolicy,
    PolicyGains,
    RobustnessNumbers,
    RobustnessResults,
    Trained,
    WatcherBest,
    gap_opens,
    past_best,
    two_way,
)
from orchestrator.reports.pictures.robustness import gap_picture
from orchestrator.reports.pictures.style import png
from orchestrator.reports.robustness import to_markdown
from orchestrator.stages.robustness import with_halves
from tests.orchestrator.reports.curves import curve
from tests.paths import PROJECT_ROOT

TOLERANCE = 1e-9


def record(prompt: str, score: float, watcher: float | None, kl: float = 0.0) -> JudgedReply:
    return JudgedReply(prompt, "helpful", (), "", score, kl, 1, truncated=False, watcher_score=watcher)


def judged(*policies: list[JudgedReply]) -> list[JudgedPolicy]:
    return [JudgedPolicy(f"policy {number}", 100 * number, replies) for number, replies in enumerate(policies)]


START = [record("x", 1.0, 10.0), record("y", 2.0, 20.0)]
# Gains 3 and 1 by the training PM, 2 and 1 by the watcher.
LATER = [record("x", 4.0, 12.0, 2.0), record("y", 3.0, 21.0, 4.0)]


def test_gains_are_paired_by_prompt_and_their_difference_is_the_gap() -> None:
    start, later = two_way(judged(START, LATER))
    assert (start.training_gain.mean, start.gap.mean) == (0.0, 0.0)
    assert later.kl_nats == pytest.approx(3.0, abs=TOLERANCE)
    assert later.training_gain.mean == pytest.approx(2.0, abs=TOLERANCE)
    assert later.watcher_gain.mean == pytest.approx(1.5, abs=TOLERANCE)
    # Gaps 1 and 0: mean 0.5, standard error 0.5; of two values Student's quantile is 12.7062.
    assert later.gap.mean == pytest.approx(0.5, abs=TOLERANCE)
    assert later.gap.ci == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)
    assert (later.n, later.policy, later.samples) == (2, "policy 1", 100)


def test_the_order_of_prompts_says_nothing_and_exchanged_pms_negate_the_gap() -> None:
    assert two_way(judged(START, LATER[::-1]))[1] == two_way(judged(START, LATER))[1]

    def exchanged(replies: list[JudgedReply]) -> list[JudgedReply]:
        return [record(row.prompt_id, row.watcher_score or 0.0, row.score, row.kl_nats) for row in replies]

    assert two_way(judged(exchanged(START), exchanged(LATER)))[1].gap.mean == pytest.approx(-0.5, abs=TOLERANCE)


def test_the_test_pm_s_best_policy_is_compared_with_the_result_by_prompt() -> None:
    fallen = [record("x", 9.0, 11.0), record("y", 9.0, 18.0)]
    best, loss = past_best(judged(START, LATER, fallen))
    # 11 - 12 and 18 - 21: mean -2, standard error 1, times 12.7062.
    assert best == 1
    assert loss is not None
    assert loss.mean == pytest.approx(-2.0, abs=TOLERANCE)
    assert loss.ci == pytest.approx((-2 - 12.7062, -2 + 12.7062), abs=1e-4)
    assert past_best(judged(START, LATER)) == (1, None)


def test_turns_of_one_dialogue_are_no_prompts_of_their_own() -> None:
    start = [replace(record(name, 0.0, 0.0), dialogue=number // 2) for number, name in enumerate("wxyz")]
    # Gains 1, 2 of one dialogue and 3, 4 of the other: 2.5 ± 12.706, as worked out in the test of the interval.
    later = [replace(reply, score=number + 1.0, kl_nats=1.0) for number, reply in enumerate(start)]
    gain = two_way(judged(start, later))[1].training_gain
    assert gain.ci == pytest.approx((2.5 - 12.7062, 2.5 + 12.7062), abs=1e-4)


def test_a_policy_that_the_watcher_did_not_judge_has_no_gap() -> None:
    with pytest.raises(ValueError, match="no watcher scored the reply to prompt x"):
        two_way(judged([record("x", 1.0, None)]))


def rows(*gaps: tuple[float, float | None]) -> list[PolicyGains]:
    """Policies with these gaps, each with the lower bound of its interval."""
    return [
        PolicyGains(
            policy=f"policy {number}",
            samples=100 * number,
            kl_nats=1.0 * number**2,
            n=8,
            training_gain=Gain(2 * gap, (gap, 3 * gap)),
            watcher_gain=Gain(gap, (0.0, 2 * gap)),
            gap=Gain(gap, (low, 2 * gap)),
        )
        for number, (gap, low) in enumerate(gaps)
    ]


def test_the_gap_opens_where_it_stays_open() -> None:
    opens = gap_opens(rows((0, 0), (0.5, 0.1), (0.4, -0.1), (1.0, 0.5), (2.0, 1.5)))
    assert opens is not None
    # It closed again after the first.
    assert (opens.policy, opens.samples, opens.kl_nats) == ("policy 3", 300, 9.0)
    assert gap_opens(rows((0, 0), (0.5, 0.1), (0.4, -0.1))) is None
    assert gap_opens(rows((0, None))) is None


def numbers(*gaps: tuple[float, float | None]) -> RobustnessNumbers:
    model = Trained(num_train=40, accuracy=0.7, ci=(0.6, 0.8))
    policies = rows(*gaps)
    return RobustnessNumbers(
        name="tiny",
        policies=tuple(policies),
        preference_models={"training PM": model, "watcher": model},
        stopped=None,
        curve=tuple(curve(bend=12, watcher=0.5)),
        gap_opens=gap_opens(policies),
        watcher_best=WatcherBest(**vars(policies[0]), result_minus_best=Gain(-0.5, (-0.75, -0.25))),
    )


def test_what_the_report_publishes_is_what_is_read() -> None:
    found = numbers((0, None), (0.5, 0.25))
    written = json.loads(json.dumps(result_to_json(found)))
    assert result_from_json(RobustnessNumbers, written, where="the report") == found
    assert written["gap_opens"].keys() == {"policy", "samples", "kl_nats", "gap"}


def test_a_report_of_version_1_is_read_whole() -> None:
    file = PROJECT_ROOT / "tests" / "models" / "policy" / "results_of_version_1.json"
    published = json.loads(file.read_text())["robustness_report"]
    found = result_from_json(RobustnessResults, published, where="the report")
    assert json.loads(json.dumps(part_to_json(found))) == published
    assert found.policies[0].policy == "initial policy"
    assert found.watcher_best.policy in {row.policy for row in found.policies}


def test_the_report_says_where_the_gap_opens_and_has_the_two_way_table() -> None:
    text = to_markdown(numbers((0, 0), (0.5, 0.25)), "gap.png")
    assert "**The gap opens at KL 1 nats**, after 100 samples" in text
    gains = "+1.000 [+0.500, +1.500] | +0.500 [+0.000, +1.000] | +0.500 [+0.250, +1.000]"
    assert f"| policy 1 | 100 | 1 | {gains} |" in text
    assert "| watcher | 40 | 0.700 [0.600, 0.800] |" in text
    assert "| … by the watcher | slope 1 [" in text
    assert "(gap.png)" in text
    assert "likes the policy 0 best, at KL 0 nats; against it the result has -0.500 [-0.750, -0.250]." in text
    assert "No gap is to be seen" in to_markdown(numbers((0, 0), (0.5, -0.25)), "gap.png")


def test_the_picture_shows_both_curves_and_their_gap() -> None:
    figure = gap_picture(numbers((0, 0), (0.5, 0.25), (1.0, None)))
    scores, gap = figure.axes
    assert {"PPO, training PM", "watcher"} <= {str(line.get_label()) for line in scores.lines}
    [points] = [line for line in gap.lines if line.get_label() == "training prompts"]
    # The curve gains 2 * 2.4 by the training PM and half of it by the other.
    assert list(points.get_ydata())[-1] == pytest.approx(2.4, abs=1e-3)
    assert "open from KL 4" not in gap.get_title(loc="left")
    assert png(figure)[:4] == b"\x89PNG"


def test_the_experiment_changes_its_own_settings_alone() -> None:
    config = parse_config({"initial_policy": {"path": "x"}, "ppo": {"kl_coef": 0.5}})
    ours = with_halves(config)
    assert (ours.preference_model.twin, ours.ppo.snapshots, ours.ppo.kl_coef) == ("halves", 4, 0.5)
    assert with_halves(parse_config({"initial_policy": {"path": "x"}, "ppo": {"snapshots": 9}})).ppo.snapshots == 9
    # The wire at the gap would end what is to be measured; every other one stays.
    assert ours.ppo.watch.max_twin_gap == 0.0
    assert replace(ours.ppo.watch, max_twin_gap=config.ppo.watch.max_twin_gap) == config.ppo.watch
