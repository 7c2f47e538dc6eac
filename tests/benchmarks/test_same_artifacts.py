"""What the guard of a refactor says of two runs, written by hand: a text, a policy made from it, and its evaluation."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.same_artifacts import compare, print_report, status_of

POLICY = "initial_policy, by pretrain, cycle 1"
EVALUATION = "evaluation, by evaluate, best of 4, cycle 1"


class Run:
    """A run's folder in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.rows: dict[str, list[dict[str, Any]]] = {
            "cycles": [{"id": 5, "number": 1, "note": None, "config": {"file": f"{folder}/inputs/a"}}],
            "stages": [],
            "artifacts": [],
            "lineage_edges": [],
            "evaluations": [],
            "decisions": [{"id": 1, "snapshot_id": 2, "evidence": {"kl_nats": 1.5}}],
            "deployments": [],
        }
        self.texts = {"dialogues.jsonl": '{"text": "hello"}\n'}
        self.results: dict[str, Any] = {"score": {"mean": 0.5, "ci": [0.25, 0.75]}}
        self.weights = {"head": torch.tensor([0.0, 1.0])}

    def written(self, created_at: str = "2026-01-01") -> Path:
        """The run on disk."""
        self._artifact(1, "text", {}, {}, self.texts, {}, created_at)
        self._artifact(2, "initial_policy", {"job": "pretrain"}, {}, self.weights, {"text": 1}, created_at)
        settings = {"job": "evaluate", "settings": {"best_of": 4}}
        files = {"results.json": json.dumps(self.results)}
        self._artifact(3, "evaluation", settings, self.results, files, {"policy": 2}, created_at)
        (self.folder / "rows.json").write_text(json.dumps(self.rows))
        return self.folder

    def _artifact(
        self, id_: int, kind: str, settings: Any, results: Any, files: dict[str, Any], inputs: Any, created_at: str
    ) -> None:
        aside = self.folder / "home" / "artifacts" / "aside"
        (aside / "files").mkdir(parents=True)
        if kind == "initial_policy":
            save_file(files, aside / "files" / "model.safetensors")
        else:
            for name, text in files.items():
                (aside / "files" / name).write_text(text)
        entries = [
            {"path": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in sorted((aside / "files").iterdir())
        ]
        manifest = json.dumps({"files": entries})
        (aside / "manifest.json").write_text(manifest)
        name = hashlib.sha256(manifest.encode()).hexdigest()
        aside.rename(aside.parent / name)
        digests = {row["id"]: row["digest"] for row in self.rows["artifacts"]}
        fingerprint = repr([kind, settings, [digests[parent] for parent in inputs.values()]])
        row = {"id": id_, "kind": kind, "settings": settings, "results": results, "digest": f"sha256:{name}"}
        row["fingerprint"] = fingerprint
        self.rows["artifacts"].append(row | {"cycle_id": 5, "created_at": created_at, "code_revision": created_at})
        self.rows["lineage_edges"] += [{"child_id": id_, "role": r, "parent_id": p} for r, p in inputs.items()]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Run, Run]:
    return Run(tmp_path / "base"), Run(tmp_path / "other")


def test_runs_that_differ_in_times_and_folders_are_equal(runs: tuple[Run, Run]) -> None:
    differences, verdicts = compare(runs[0].written(), runs[1].written(created_at="2026-02-02"))
    assert (differences, status_of(differences)) == ([], 0)
    assert verdicts == [("text, cycle 1", "equal"), (POLICY, "equal"), (EVALUATION, "equal")]


def test_a_field_of_results_is_named_in_file_and_row_and_weights_are_equal(
    runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    runs[1].results = copy.deepcopy(runs[0].results)
    runs[1].results["score"]["ci"][1] = 0.8
    differences, verdicts = compare(runs[0].written(), runs[1].written())
    assert [(found.name, found.root, found.weights) for found in differences] == [(EVALUATION, True, False)]
    assert differences[0].fields == [
        ("results.json score.ci[1]", "0.75 | 0.8"),
        ("row results.score.ci[1]", "0.75 | 0.8"),
    ]
    assert status_of(differences) == 1
    print_report(differences, verdicts)
    assert "commit's message:\n    results.json score.ci[]\n    row results.score.ci[]\n" in capsys.readouterr().out


def test_what_follows_from_other_weights_is_no_root_cause(runs: tuple[Run, Run]) -> None:
    # 0 and -0 are equal numbers and other bytes.
    runs[1].weights = {"head": torch.tensor([-0.0, 1.0])}
    runs[1].results = {"score": {"mean": 0.5}}
    differences, verdicts = compare(runs[0].written(), runs[1].written())
    assert [(found.name, found.root, found.weights) for found in differences] == [
        (POLICY, True, True),
        (EVALUATION, False, False),
    ]
    assert differences[0].fields == [("model.safetensors", "1 of 1 tensors differ: head by up to 0")]
    # The evaluation's fingerprint differs because its input does, which is nothing to tell.
    assert {where for where, _ in differences[1].fields} == {"results.json score.ci", "row results.score.ci"}
    assert status_of(differences) == 2
    assert verdicts[2] == (EVALUATION, "files differ (an input does)")


def test_a_whole_number_that_became_a_fraction_and_a_decision_are_told(runs: tuple[Run, Run]) -> None:
    runs[0].results, runs[1].results = {"n": 1}, {"n": 1.0}
    runs[1].rows["decisions"][0]["evidence"]["kl_nats"] = 1.25
    differences, _ = compare(runs[0].written(), runs[1].written())
    assert [found.fields for found in differences] == [
        [("results.json n", "1 | 1.0"), ("row results.n", "1 | 1.0")],
        [("[0].evidence.kl_nats", "1.5 | 1.25")],
    ]
    assert (differences[1].name, status_of(differences)) == ("table decisions", 1)


@pytest.mark.parametrize(("num_made", "status"), [(2, 1), (1, 2)])
def test_what_only_one_run_made_counts_as_other_weights_where_it_holds_weights(
    runs: tuple[Run, Run], num_made: int, status: int
) -> None:
    base, other = runs[0].written(), runs[1].written()
    rows = json.loads((other / "rows.json").read_text())
    rows["artifacts"] = rows["artifacts"][:num_made]
    rows["lineage_edges"] = rows["lineage_edges"][: num_made - 1]
    (other / "rows.json").write_text(json.dumps(rows))
    differences, verdicts = compare(base, other)
    assert differences[0].fields == [("made", "only by the base")]
    assert verdicts[2] == (EVALUATION, "only in the base")
    assert status_of(differences) == status
