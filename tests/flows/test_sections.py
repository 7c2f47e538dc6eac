"""Stages that only run where the configuration has their section, in a cycle and by their real jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from db import tables as t
from orchestrator import stages
from orchestrator.cli import main
from orchestrator.config import load_config
from orchestrator.cycles import database
from orchestrator.distillation_picture import distillation_numbers, distillation_rows
from orchestrator.lineage import lineage
from tests.flows.conftest import write_comparisons

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


@pytest.mark.slow
def test_a_cycle_distils_its_initial_policy_and_fits_a_detector(
    config_file: Path, database_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    (tmp_path / "bad.txt").write_text("".join(f"{word * 9}\n" for word in ("zq", "]]", "0#", "<>", "ÿ")))
    (tmp_path / "prompt.md").write_text("Be kind.\n\n---\n\nHuman: Hi\n\nAssistant: Hello!\n")
    folder = str(config_file.parent)
    (tmp_path / "cycle.toml").write_text(
        config_file.read_text().replace('"dialogues.jsonl"', f'"{folder}/dialogues.jsonl"')
        + SECTIONS.format(folder=folder)
    )
    file = write_comparisons(tmp_path / "comparisons.jsonl", 0, 80)
    assert main(["import", "--question", "helpful", "--source", "tiny", str(file)]) == 0
    cycle_id = stages.open_cycle(load_config(tmp_path / "cycle.toml"))
    initial_id = stages.prepare_initial_policy(cycle_id)
    comparison_set_id = stages.freeze_comparisons(cycle_id)
    prompt_set_id = stages.build_prompts(cycle_id, comparison_set_id)
    detector_id = stages.fit_ood_detector(cycle_id, initial_id, prompt_set_id)
    # Asked again, everything is found.
    assert stages.prepare_initial_policy(cycle_id) == initial_id
    assert stages.fit_ood_detector(cycle_id, initial_id, prompt_set_id) == detector_id

    with database() as rows:
        found = {artifact.id: artifact for artifact in rows.scalars(select(t.Artifact))}
        kinds = {node.kind for node in lineage(rows, str(detector_id)).nodes.values()}
        done = rows.scalars(select(t.Stage.state).where(t.Stage.name == "fit_ood_detector").order_by(t.Stage.id)).all()
    assert done == ["done", "found"]
    assert {"prompt_set", "ood_prompts", "distillation_set", "distillation_prompt", "text", "comparison_set"} <= kinds
    results = found[detector_id].results
    assert (results["kind"], results["num_examples"], results["layer_chosen_by"]) == ("exposure", 5, "rule")
    distilled = found[initial_id]
    assert distilled.kind == "initial_policy"
    assert distilled.results["held_out_kl_after"] < distilled.results["held_out_kl_before"]
    # The student that was prepared is another policy, which no stage of the cycle is given.
    (prepared,) = [one for one in found.values() if one.kind == "initial_policy" and one.id != initial_id]
    assert distillation_numbers(prepared.results) is None
    [(name, told)] = distillation_rows(distillation_numbers(distilled.results))
    assert name == "Initial policy distilled"
    assert told.startswith("from the prompt prompt ")
