"""Parts of a cycle that only run where the configuration has their section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flows.conftest import run_command, write_comparisons


@pytest.mark.slow
def test_a_cycle_fits_a_detector(config_file: Path, database_url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "bad.txt").write_text("".join(f"{word * 9}\n" for word in ("zq", "]]", "0#", "<>", "ÿ")))
    (tmp_path / "cycle.toml").write_text(
        config_file.read_text().replace("dialogues.jsonl", str(config_file.parent / "dialogues.jsonl"))
        + '[ood]\ndetector = "exposure"\nexamples_file = "bad.txt"\n'
    )

    def run(*words: str) -> str:
        return run_command(home, *words, DATABASE_URL=database_url)

    file = write_comparisons(tmp_path / "comparisons.jsonl", 0, 80)
    run("import", "--question", "helpful", "--source", "tiny", str(file))
    run("cycle", "run", "--inline", "--config", str(tmp_path / "cycle.toml"))
    (detector,) = json.loads(run("ood", "list", "--json"))
    assert detector["cycle"] == 1
    results = detector["results"]
    assert (results["kind"], results["num_examples"], results["layer_chosen_by"]) == ("exposure", 5, "validation")
    assert results["num_fit"] + results["num_validation"] + results["false_alarms"]["n"] > 20
    told = json.loads(run("lineage", str(detector["id"]), "--json"))
    assert {"initial_policy", "prompt_set", "ood_prompts"} <= {node["kind"] for node in told["nodes"]}
