"""The demo's parts: settings, the time to go, the report. The demo itself runs in test_demo_runs.py (slow)."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import CycleConfig, load_config
from orchestrator.cycles import record as cycles
from orchestrator.errors import ConfigError, CycleError
from orchestrator.store.acts import machine_user
from orchestrator.world.console import Console, Phase
from orchestrator.world.demo import WEEK_ZERO, collecting_phase, judging_phase, make_room, phases, training_phase
from orchestrator.world.report import BestOf, Entry, Report, picture, table, write
from orchestrator.world.settings import EXAMPLE, DemoConfig, cycle_config, free_home, instance_name, write_toml

KEYS = [
    "cycle",
    "comparisons",
    "pm_accuracy",
    "pm_accuracy_ci",
    "kl_nats",
    "pm_score",
    "true_helpful",
    "true_harmless",
    "elo",
    "elo_ci",
    "snapshot",
]


def example(*overrides: str) -> DemoConfig:
    return load_config(EXAMPLE, list(overrides), DemoConfig)


def test_the_cycles_never_learn_of_world_and_raters(tmp_path: Path) -> None:
    (tmp_path / "orientation.jsonl").touch()
    told = cycle_config(example(), tmp_path)
    write_toml(told, tmp_path / "cycle.toml")
    text = (tmp_path / "cycle.toml").read_text()
    assert "taste" not in text
    read = load_config(tmp_path / "cycle.toml")
    assert read.model_dump(mode="json") == CycleConfig.model_validate(told).model_dump(mode="json")
    assert read.prompts.held_out_file == str(tmp_path / "evaluation.jsonl")
    assert read.orientation.file == str(tmp_path / "orientation.jsonl")


def test_random_taste_has_no_orientation_check(tmp_path: Path) -> None:
    assert cycle_config(example("raters.taste=random"), tmp_path)["orientation"]["file"] is None


def test_other_settings_are_another_instance() -> None:
    names = {
        instance_name(example(*overrides), cycles)
        for overrides, cycles in (((), 3), ((), 2), (("seed=1",), 3), (("raters.taste=random",), 3))
    }
    assert len(names) == 4
    assert instance_name(example(), 3) == instance_name(example(), 3)


def test_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"raters\.tast: unknown key; did you mean taste\? known are .*taste"):
        example("raters.tast=random")


def test_a_second_demo_beside_a_running_one_gets_its_own_home(tmp_path: Path) -> None:
    from orchestrator import running_instance

    first = free_home(tmp_path, example(), 3)
    assert free_home(tmp_path, example(), 3) == first
    with running_instance.held(first):
        assert free_home(tmp_path, example(), 3) == first.with_name(f"{first.name}-2")


def test_time_to_go_follows_the_pace() -> None:
    now = [0.0]
    console = Console([Phase("one", 60), Phase("two", 40)], io.StringIO(), lambda: now[0])
    console.begin("one")
    assert console.seconds_left() == pytest.approx(100)
    now[0] = 120.0
    console.begin("two")
    # The first took 120 s where 60 were expected: pace (120 + 60) / (60 + 60) = 1.5; 40 s become 60.
    assert console.seconds_left() == pytest.approx(60)
    now[0] = 135.0
    console.update(0.5, "half way")
    # Half of it took 15 s, so the other half takes as long.
    assert console.seconds_left() == pytest.approx(15)
    console.end()
    assert console.seconds_left() == 0


def said_and_needed(pace: float, changes: tuple[float, ...]) -> list[tuple[float, float]]:
    """Times to go that a demo says on a machine so much slower than the plan, and those that it then needs, in s."""
    now, said = [0.0], io.StringIO()
    plan = phases(3, WEEK_ZERO)
    console = Console(plan, said, lambda: now[0])
    for number, phase in enumerate(plan):
        console.begin(phase.name)
        began_s, takes_s = now[0], phase.expected_s * pace * changes[number % len(changes)]
        while now[0] < began_s + takes_s:
            now[0] = min(now[0] + 5, began_s + takes_s)
            if "raters compare" in phase.name:
                console.update((now[0] - began_s) / takes_s, "comparisons")
            else:
                console.say("a stage")
    lines = re.findall(r"^(\d+):(\d\d)  about (\d+):(\d\d) left", said.getvalue(), re.MULTILINE)
    times = [[int(part) for part in line] for line in lines]
    return [(60 * m + s, now[0] - (60 * at_m + at_s)) for at_m, at_s, m, s in times]


@pytest.mark.parametrize("pace", [0.6, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("changes", [(1.0,), (1.0, 1.3, 0.8), (0.7, 1.2), (0.8, 1.0, 1.6, 0.9)])
def test_a_time_to_go_that_was_too_short_is_followed_by_one_that_is_not(
    pace: float, changes: tuple[float, ...]
) -> None:
    told = said_and_needed(pace, changes)
    assert len(told) > 20
    # Both are cut to whole seconds.
    short = [said + 2 < needed for said, needed in told]
    assert not any(one and other for one, other in itertools.pairwise(short))
    if changes == (1.0,):
        assert all(said < 2 * needed + 60 for said, needed in told)


def test_phases_an_earlier_start_did_are_not_waited_for() -> None:
    console = Console(phases(3), io.StringIO(), lambda: 0.0)
    console.begin(training_phase(3), "cycle 4: train, judge, promote")
    assert console.seconds_left() == pytest.approx(65 + 18)


def test_a_demo_that_goes_on_counts_only_what_is_left() -> None:
    said = io.StringIO()
    console = Console([], said, lambda: 0.0)
    console.begin("start")
    assert "left" not in said.getvalue()
    console.plan(phases(2))
    console.done(WEEK_ZERO)
    # Two turns of 30 + 65 + 18 s.
    assert console.seconds_left() == pytest.approx(226)
    console.done(training_phase(1))
    assert console.seconds_left() == pytest.approx(18 + 113)
    console.done(judging_phase(2))
    assert console.seconds_left() == 0


def test_a_turn_that_is_taken_again_is_waited_for_again() -> None:
    now = [0.0]
    console = Console(phases(2), io.StringIO(), lambda: now[0])
    console.begin(training_phase(2))
    now[0] = 3600.0
    console.plan(phases(2, collecting_phase(2)))
    # The hour that another cycle took says nothing of the pace: 30 + 65 + 18 s.
    assert console.seconds_left() == pytest.approx(113)
    console.begin(collecting_phase(2))
    assert console.seconds_left() == pytest.approx(113)


@pytest.fixture
def database(home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


def test_the_demo_waits_until_the_operator_ends_a_cycle_of_another_configuration(database: str, home: Path) -> None:
    own = CycleConfig.model_validate(cycle_config(example(), home))
    other = own.model_copy(update={"name": "other"})
    assert cycles.coming_number() == 1
    cycles.open_cycle(other)
    said: list[str] = []

    def cancel(line: str) -> None:
        said.append(line)
        cycles.cancel_cycle(1, machine_user())

    make_room(own, home, cancel, waits=True)
    [line] = said
    assert "Cycle 1 is open since" in line
    assert "(they differ in name), and only one cycle can be open at a time" in line
    *_, reach, command = line.splitlines()
    activate = shlex.quote(f"{Path(sys.executable).parent}/activate")
    assert reach.strip() == f". {activate} && export ORCHESTRATOR_HOME={shlex.quote(str(home))}"
    assert command.strip() == "orchestrator cycle cancel 1"
    # The heading of the next has the number that its row will have.
    assert cycles.coming_number() == 2
    cycles.open_cycle(own)
    make_room(own, home, pytest.fail, waits=True)


def test_a_demo_that_nobody_watches_ends_and_tells_the_way_out(database: str, home: Path) -> None:
    own = CycleConfig.model_validate(cycle_config(example(), home))
    cycles.open_cycle(own.model_copy(update={"name": "other"}))
    with pytest.raises(CycleError) as refused:
        make_room(own, home, pytest.fail, waits=False)
    steps = [line.strip() for line in str(refused.value).splitlines()]
    assert [step.partition(" #")[0].strip() for step in steps[2:4]] == [
        "orchestrator up",
        "orchestrator cycle cancel 1",
    ]
    assert f"export ORCHESTRATOR_HOME={home}" in steps[1]


def test_a_home_that_is_a_demo_s_is_gone_on_with_or_refused(tmp_path: Path) -> None:
    first = free_home(tmp_path, example(), 3)
    assert free_home(first, example(), 3) == first
    second = first.with_name(f"{first.name}-2")
    assert free_home(second, example(), 3) == second
    with pytest.raises(ConfigError) as refused:
        free_home(first, example("seed=1"), 3)
    assert str(first) in str(refused.value)
    assert str(tmp_path / instance_name(example("seed=1"), 3)) in str(refused.value)


@pytest.fixture
def report() -> Report:
    entries = [
        Entry(0, 0, None, None, 0.0, 0.0, 0.5, 0.33, 0.0, [0.0, 0.0], "sha256:00"),
        Entry(1, 480, 0.6, [0.51, 0.69], 1.5, 0.6, 0.53, 0.55, 40.0, [8.0, 74.0], "sha256:11"),
        Entry(2, 960, 0.64, [0.57, 0.7], 1.4, 0.8, 0.56, 0.66, 66.0, [32.0, 101.0], "sha256:22"),
    ]
    stages = [{"cycle": 1, "stage": "freeze", "state": "done", "run": 1, "seconds": 3.0, "job_seconds": 0.0}]
    return Report(7, 400.0, entries, BestOf(16, 1.8, 0.9, 0.6, 0.5), stages)


def test_report_has_the_promised_keys_and_a_picture(report: Report, tmp_path: Path) -> None:
    write(report, tmp_path)
    found = json.loads((tmp_path / "demo-report.json").read_text())
    assert {"seed", "seconds", "cycles"} <= found.keys()
    assert [sorted(entry) for entry in found["cycles"]] == [sorted(KEYS)] * 3
    assert found["cycles"][0]["cycle"] == 0
    assert (tmp_path / "demo-report.png").read_bytes().startswith(b"\x89PNG")


def test_table_shows_every_cycle_and_the_yardstick(report: Report) -> None:
    lines = table(report).splitlines()
    assert lines[2].split()[:2] == ["initial", "0"]
    assert "0.640 ± 0.065" in lines[4]
    assert lines[4].endswith("+66 [+32, +101]")
    assert lines[5].startswith("best of 16")


def test_improved_means_that_the_whole_interval_of_the_last_policy_lies_above_zero(report: Report) -> None:
    assert report.improved
    touching = Entry(3, 1440, 0.6, [0.5, 0.7], 1.0, 0.5, 0.5, 0.5, 20.0, [0.0, 40.0], "sha256:33")
    assert not Report(7, 1.0, [*report.cycles, touching], None, []).improved


@pytest.mark.parametrize("num_cycles", [1, 3, 12])
def test_labels_of_the_picture_neither_overlap_nor_leave_it(report: Report, num_cycles: int) -> None:
    """Policies that hardly moved, whose points lie on each other, have the closest names."""
    trained = [replace(report.cycles[1], cycle=number + 1, kl_nats=1e-3 * number) for number in range(num_cycles)]
    figure = picture(replace(report, cycles=[report.cycles[0], *trained]))
    figure.draw_without_rendering()
    canvas = figure.bbox
    shown = []
    for axes in figure.axes:
        legend = axes.get_legend()
        ticks = []
        for at, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = axis.get_view_interval()
            # Those beyond the limits are not drawn, and keep their text.
            ticks += [label for label in axis.get_ticklabels() if low <= label.get_position()[at] <= high]
        titles = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]  # type: ignore[attr-defined]
        texts = [*titles, *ticks, *axes.texts, *([] if legend is None else legend.get_texts())]
        inside = axes.get_window_extent()
        if legend is not None:
            assert legend.get_window_extent().y0 >= inside.y1
        shown += [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    for text, box in boxes:
        assert canvas.x0 <= box.x0 < box.x1 <= canvas.x1, text
        assert canvas.y0 <= box.y0 < box.y1 <= canvas.y1, text
    for (text, box), (other, beside) in itertools.combinations(boxes, 2):
        assert not box.overlaps(beside), (text, other)
