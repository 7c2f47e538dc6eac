"""Whole runs of what is off by default: a cycle that distils and fits a detector, then the robustness experiment.

Both by their commands, on the workers of a real instance.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from db import tables as t
from models.runtime.results import result_from_json
from orchestrator.instance.up import Instance
from orchestrator.reports.detectors import FittedDetector, detector_rows
from orchestrator.reports.distillation import course_of, distillation_rows
from orchestrator.stages.robustness import KIND
from orchestrator.store.lineage import lineage
from tests.flows.kills import stages_done
from tests.flows.prefect_calls import prefect
from tests.flows.tiny_cycle import Orchestrator, next_number, write_comparisons

SECTIONS = """
[initial_policy.distill]
files = ["{folder}/dialogues.jsonl"]
prompt_file = "prompt.md"
tokens = 1500
max_tokens = 40
held_out_texts = 8
batch_texts = 8
learning_rate_multiple = 0.2
[ood]
detector = "exposure"
examples_file = "bad.txt"
"""


def in_prefect(instance: Instance, key: str) -> str:
    """The report that the Prefect UI shows under a key."""
    [found] = prefect(instance, "POST", "/artifacts/latest/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()
    return str(found["data"])


@pytest.mark.slow
def test_a_cycle_with_every_section_and_the_robustness_experiment_after_it(
    instance: Instance, orchestrator: Orchestrator, config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_text("".join(f"{word * 9}\n" for word in ("zq", "]]", "0#", "<>", "ÿ")))
    (tmp_path / "prompt.md").write_text("Be kind.\n\n---\n\nHuman: Hi\n\nAssistant: Hello!\n")
    folder, config = str(config_file.parent), tmp_path / "sections.toml"
    config.write_text(
        config_file.read_text().replace('"dialogues.jsonl"', f'"{folder}/dialogues.jsonl"')
        + SECTIONS.format(folder=folder)
    )
    file = write_comparisons(tmp_path / "more.jsonl", 9000, 50)
    orchestrator("import", "--question", "helpful", "--source", "tiny", str(file))
    # A first cycle with enough comparisons needs no week 0.
    number = next_number(orchestrator)
    options = ("--config", str(config), "--set", "seed=9")
    printed = orchestrator("cycle", "run", *options)
    for stage in ("prepare_initial_policy", "train_policy", "fit_ood_detector", "write_report"):
        assert f"{stage} done (" in printed
    done = stages_done(instance.database_url, number)
    assert (done["prepare_initial_policy"], done["fit_ood_detector"], done["evaluate_policy"]) == (1, 1, 2)

    engine = create_engine(instance.database_url)
    with Session(engine) as rows:
        cycle = rows.scalars(select(t.Cycle).where(t.Cycle.number == number)).one()
        made = list(rows.scalars(select(t.Artifact).where(t.Artifact.cycle_id == cycle.id).order_by(t.Artifact.id)))
        [detector] = [one for one in made if one.kind == "ood_detector"]
        kinds = {node.kind for node in lineage(rows, str(detector.id)).nodes.values()}
    assert {"prompt_set", "ood_prompts", "distillation_set", "distillation_prompt", "text", "comparison_set"} <= kinds
    found = (detector.results["kind"], detector.results["num_examples"], detector.results["layer_chosen_by"])
    assert found == ("exposure", 5, "rule")
    # The student that was prepared is another policy, which no stage of the cycle is given.
    prepared, distilled = [one for one in made if one.kind == "initial_policy"]
    assert course_of(prepared.results) is None
    assert distilled.results["held_out_kl_after"] < distilled.results["held_out_kl_before"]

    # The operator sees both.
    fitted = result_from_json(FittedDetector, detector.results | {"digest": detector.digest}, where="the detector")
    rows_told = [*distillation_rows(course_of(distilled.results)), *detector_rows(fitted)]
    text = orchestrator("cycle", "show", str(number))
    assert [f"| {name} | {value} |" in text for name, value in rows_told] == [True] * len(rows_told)
    assert rows_told[-1][0] == "… before the policies"
    # The UI has the first screen, with the way to the rest.
    report = in_prefect(instance, f"cycle-{number}")
    assert f"/desk/cycles/{number}/report)" in report
    assert "data:image/png;base64," in report
    assert "| Distance | " in report

    # PPO that gets away, so that there is a way to judge.
    far = ("ppo.snapshots=1", "ppo.learning_rate=0.003", "ppo.iterations=5", "ppo.kl_coef=0")
    options += tuple(word for setting in far for word in ("--set", setting))
    printed = orchestrator("experiment", "robustness", *options)
    # The distilled policy is found; the initial policy, the snapshot and the result are judged.
    assert printed.count("evaluate_policy done (") == 3
    assert "write_report done (" in printed
    assert "`orchestrator experiment show` prints the report" in printed
    report = in_prefect(instance, "robustness")
    assert report.startswith("# Robustness: tiny")
    assert "data:image/png;base64," in report
    shown = orchestrator("experiment", "show")
    assert table_of(shown) == table_of(report)
    folder = Path(shown.rpartition("The picture: ")[2].strip()).parent
    assert (folder / "gap.png").read_bytes()[:4] == b"\x89PNG"
    numbers = json.loads(orchestrator("experiment", "show", "--json"))
    assert all(point["score_watcher"] is not None for point in numbers["curve"])

    with Session(engine) as rows:
        [experiment] = rows.scalars(select(t.Artifact).where(t.Artifact.kind == KIND))
        from_policy = {node.key for node in lineage(rows, str(experiment.id)).upstream()}
        [compared] = [one for one in made if one.kind == "comparison_set"]
        assert {f"artifact:{compared.id}", f"artifact:{distilled.id}"} <= from_policy
        # What the experiment does belongs to no cycle.
        assert experiment.cycle_id is None
        assert stages_done(instance.database_url, number) == done
        artifacts = rows.scalar(select(func.count()).select_from(t.Artifact))
    # Both see the same held-out comparisons, and together every training one once.
    models = experiment.results["preference_models"]
    assert models["training PM"]["num_train"] + models["watcher"]["num_train"] == compared.results["num_train"]
    first, snapshot, result = experiment.results["policies"]
    assert first["gap"]["mean"] == first["training_gain"]["mean"] == first["kl_nats"] == 0.0
    assert 0 < snapshot["samples"] < result["samples"] == 40
    assert result["kl_nats"] != 0.0
    assert result["gap"]["mean"] == pytest.approx(
        result["training_gain"]["mean"] - result["watcher_gain"]["mean"], abs=1e-9
    )

    # In this process, without Prefect, everything is found again; a terminal gets no pictures.
    again = orchestrator("experiment", "robustness", "--inline", *options)
    assert table_of(again) == table_of(report)
    assert "data:" not in again
    with Session(engine) as rows:
        assert rows.scalar(select(func.count()).select_from(t.Artifact)) == artifacts
    engine.dispose()
    refused = orchestrator("experiment", "show", str(distilled.id), status=2)
    assert f"Artifact {distilled.id} is of kind initial_policy; expected robustness_report." in refused


def table_of(text: str) -> list[str]:
    """The rows of the tables of a report."""
    return [line for line in text.splitlines() if line.startswith("| ")]
