"""What a cycle's report says about what stopped it: every kind of stop has its stage, its check and its advice."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from db import tables as t
from orchestrator.config import parse_config
from orchestrator.gates import Evidence, judge
from orchestrator.stop_report import GATE_ADVICE, WIRE_ADVICE, _ended_by, _ppo_stop, _refusal, stop_lines

ROOT = Path(__file__).resolve().parent.parent
BEGAN = datetime(2026, 1, 5, tzinfo=UTC)


def attempt(number: int, name: str, state: str, error: str | None = None, ended: int | None = None) -> t.Stage:
    """A stage's row, begun in minute `number`, ended in the next or in minute `ended`."""
    ended_at = None if state == "running" else BEGAN + timedelta(minutes=ended or number + 1)
    began_at = BEGAN + timedelta(minutes=number)
    return t.Stage(id=number, name=name, state=state, error=error, started_at=began_at, ended_at=ended_at)


def test_the_stage_that_failed_last_ended_the_cycle_until_something_was_done_since():
    rows = [attempt(1, "build_prompts", "done"), attempt(2, "train_policy", "failed", "JobFailed: killed")]
    assert _ended_by(rows, None) == ("train_policy", "JobFailed: killed")
    # The report of it is no news, and neither is one that could not be written.
    rows.append(attempt(4, "write_report", "failed", "OSError: disk full"))
    assert _ended_by(rows, None) == ("train_policy", "JobFailed: killed")
    # The next run has begun: nothing stands still.
    rows.append(attempt(5, "build_prompts", "found"))
    assert _ended_by(rows, None) is None
    assert _ended_by([*rows, attempt(6, "train_policy", "done")], None) is None
    assert _ended_by([attempt(1, "write_report", "failed", "OSError: disk full")], None) == (
        "write_report",
        "OSError: disk full",
    )


def test_a_stage_whose_process_was_killed_is_known_by_what_ended_the_run():
    rows = [
        attempt(1, "train_policy", "failed", "JobFailed: killed"),
        attempt(3, "train_policy", "done"),
        attempt(4, "evaluate_policy", "running"),
    ]
    assert _ended_by(rows, None) is None
    crash = "JobFailed: evaluate-policies ended as Crashed: no sign of life"
    assert _ended_by(rows, crash) == ("evaluate_policy", crash)
    # Beside it another one ended well.
    assert _ended_by([*rows, attempt(5, "fit_ood_detector", "done")], crash) == ("evaluate_policy", crash)
    assert _ended_by(rows[:2], crash) == ("train_policy", crash)
    assert _ended_by([], crash) == ("cycle", crash)


def test_of_several_stages_at_once_the_one_whose_error_ended_the_run_is_told():
    # The second of them was still to begin when the first failed, and failed too.
    rows = [
        attempt(1, "evaluate_best_of_2", "failed", "JobRefused: no prompts"),
        attempt(3, "evaluate_policy", "failed", "ArtifactError: damaged"),
    ]
    waited = (
        "JobFailed: evaluate-policies ended as Failed: Flow run encountered an exception: JobRefused: no prompts. Run"
    )
    assert _ended_by(rows, waited) == ("evaluate_best_of_2", "JobRefused: no prompts")
    assert _ended_by(rows, "ArtifactError: damaged") == ("evaluate_policy", "ArtifactError: damaged")


def test_a_tripped_wire_is_told_with_its_figures_and_its_advice():
    stopped = "entropy 0.1 nats per token is 4% of the start's 2.5, below min_entropy_share 0.05 (iteration 7)"
    stop = _ppo_stop({"stopped": stopped, "watch": {"stopped_by": "entropy"}}, "sha256:ab")
    assert stop_lines([vars(stop)]) == [
        f"**Stopped** at `train_policy` by the tripwire `entropy`: {stopped}",
        "",
        "- Kept: the last good weights are the snapshot `sha256:ab`, evaluated and gated like any other.",
        f"- Next: {WIRE_ADVICE['entropy']} More in docs/operations.md, “PPO is watched”.",
        "",
    ]
    # A snapshot from before there were wires names none.
    assert _ppo_stop({"stopped": "the loss was not finite in iteration 3"}, "sha256:ab").by == (
        "the check that its numbers are finite"
    )


def test_a_refusal_says_whether_people_compare_the_snapshot():
    reasons = [{"gate": "kl", "passed": False, "reason": "KL out of bounds"}]
    far, same = (t.Decision(reasons=reasons, evidence={"kl_nats": kl}) for kl in (60.0, 0.0))
    assert _refusal(far, "no policy was live yet", "sha256:ab").kept == (
        "no policy was live yet; the refused snapshot `sha256:ab` is put before people beside the initial policy."
    )
    assert _refusal(same, "no policy was live yet", "sha256:ab").kept == (
        "no policy was live yet; the refused snapshot `sha256:ab` has the initial policy's weights, so that raters are "
        "not asked to compare the two."
    )


def test_every_wire_and_every_gate_has_an_advice():
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page[page.index("| wire (`stopped_by`)") : page.index("Wires that stopped nothing")]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    documented = {wire for cell in first_cells if "none" not in cell for wire in re.findall(r"`(\w+)`", cell)}
    source = (ROOT / "models" / "watch.py").read_text()
    named = set(re.findall(r'Alarm\(\s*"(\w+)"', source))
    assert named <= set(WIRE_ADVICE)
    assert documented == set(WIRE_ADVICE)
    gates = parse_config(
        {"initial_policy": {"path": "x"}, "gates": {"max_duplicate_share": 0.5, "max_refusal_share": 0.5}}
    ).gates
    verdicts = judge(gates, Evidence(None, None, 0, 0.0, (0.0, 0.0), 1.0))
    assert {verdict.gate for verdict in verdicts} == set(GATE_ADVICE)
