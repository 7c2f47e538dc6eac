"""Parts of a cycle that only run where the configuration has their section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import run_command, write_comparisons

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
    config_file: Path, database_url: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (tmp_path / "bad.txt").write_text("".join(f"{word * 9}\n" for word in ("zq", "]]", "0#", "<>", "ÿ")))
    (tmp_path / "prompt.md").write_text("Be kind.\n\n---\n\nHuman: Hi\n\nAssistant: Hello!\n")
    folder = str(config_file.parent)
    (tmp_path / "cycle.toml").write_text(
        config_file.read_text().replace('"dialogues.jsonl"', f'"{folder}/dialogues.jsonl"')
        + SECTIONS.format(folder=folder)
    )

    def run(*words: str) -> str:
        return run_command(home, *words, DATABASE_URL=database_url)

    file = write_comparisons(tmp_path / "comparisons.jsonl", 0, 80)
    run("import", "--question", "helpful", "--source", "tiny", str(file))
    run("cycle", "run", "--inline", "--config", str(tmp_path / "cycle.toml"))
    (detector,) = json.loads(run("ood", "list", "--json"))
    assert detector["cycle"] == 1
    assert (detector["results"]["kind"], detector["results"]["num_examples"]) == ("exposure", 5)
    told = json.loads(run("lineage", str(detector["id"]), "--json"))
    kinds = {node["kind"] for node in told["nodes"]}
    assert {"initial_policy", "prompt_set", "ood_prompts", "distillation_set", "distillation_prompt", "text"} <= kinds
    # The student that was prepared, and what came of it: the latter is what the cycle trained from.
    policies: list[dict[str, Any]] = json.loads(run("artifacts", "--kind", "initial_policy", "--json"))
    distilled, prepared = policies
    assert "distillation_curve" not in prepared["results"]
    assert distilled["results"]["held_out_kl_after"] < distilled["results"]["held_out_kl_before"]
    assert distilled["results"]["prompt_version"].startswith("prompt ")
    (snapshot,) = json.loads(run("artifacts", "--kind", "snapshot", "--limit", "1", "--json"))
    assert f"artifact:{distilled['id']}" in run("lineage", str(snapshot["id"]), "--json")
    assert "Initial policy distilled" in run("cycle", "show", "1")
