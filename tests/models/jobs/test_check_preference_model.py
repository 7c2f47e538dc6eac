"""The orientation check: a preference model turned round must be seen at once."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from models.chat.format import ChatFormat
from models.chat.refusals import Refusals
from models.jobs.check_preference_model import ordered_pairs, run
from models.model_folders.saving import save_model
from models.preference.comparison_set import token_pair
from models.preference.model import PreferenceModel, fresh_preference_model
from models.preference.report import ScoredPair
from models.runtime.job import Job, JobError
from tests.models.preference_world import polite_comparisons, write_comparison_set


@pytest.fixture(scope="module")
def scorer_dir(policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained preference model: it orders pairs somehow, and that is enough here."""
    chat = ChatFormat.load(policy_dir)
    directory = tmp_path_factory.mktemp("scorer")
    save_model(fresh_preference_model(policy_dir, chat, 0, torch.device("cpu")), directory, chat, "")
    return directory


def check(out: Path, preference_model: Path, records: list[dict]) -> dict:
    pairs = out / "pairs"
    pairs.mkdir(parents=True)
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run(Job({"inputs": {"preference_model": str(preference_model), "pairs": str(pairs)}}, out))
    return json.loads((out / "result" / "results.json").read_text())


def ordered_by(model: PreferenceModel, records: list[dict]) -> list[dict]:
    """The records with the sides exchanged where needed, so that the model orders every one rightly."""
    turned = []
    for record in records:
        better, worse = model.score([[*record["prompt"], *record[side]] for side in ("better", "worse")])
        turned.append(record if better > worse else record | {"better": record["worse"], "worse": record["better"]})
    return turned


def test_right_order_is_accuracy_one_and_the_reverse_zero(scorer_dir, tmp_path):
    records = ordered_by(PreferenceModel.load(scorer_dir), polite_comparisons(12, 0))
    right = check(tmp_path / "right", scorer_dir, records)
    assert (right["accuracy"], right["n"], right["wrong"]) == (1.0, 12, [])
    reversed_records = [r | {"better": r["worse"], "worse": r["better"]} for r in records]
    wrong = check(tmp_path / "wrong", scorer_dir, reversed_records)
    assert wrong["accuracy"] == 0.0
    assert wrong["wrong"] == [record["id"] for record in records]
    # Wilson at 12 of 12: the low end is 12 / (12 + 1.96²) = 0.7575.
    assert right["ci"] == pytest.approx([0.7575, 1.0], abs=1e-4)
    assert wrong["ci"] == pytest.approx([0.0, 0.2425], abs=1e-4)


def test_a_tie_is_half_right_and_listed():
    scored = [
        ScoredPair("a", "hand", "helpful", 1.0, 0.0, 0),
        ScoredPair("b", "hand", "harmless", 0.5, 0.5, 0),
        ScoredPair("c", "hand", "harmless", 0.0, 2.0, 0),
    ]
    results = ordered_pairs(scored, {}, Refusals(), Counter())
    assert results.accuracy == 0.5
    assert results.wrong == ("b", "c")
    assert results.by_question["helpful"].accuracy == 1.0
    assert results.by_question["harmless"].accuracy == 0.25


def test_no_pairs_and_no_preference_model_are_clear_errors(scorer_dir, policy_dir, tmp_path):
    with pytest.raises(JobError, match="0 pairs"):
        check(tmp_path / "empty", scorer_dir, [])
    with pytest.raises(JobError, match="train_preference_model"):
        check(tmp_path / "policy", policy_dir, polite_comparisons(2, 0))


def test_of_a_comparison_set_the_named_shards_are_scored_without_ties(scorer_dir, tmp_path):
    records = ordered_by(PreferenceModel.load(scorer_dir), polite_comparisons(12, 0))
    records[0] |= {"tie": "equal"}
    # The other shard is turned round, and would show.
    comparisons = write_comparison_set(
        tmp_path / "set", [r | {"better": r["worse"], "worse": r["better"]} for r in records]
    )
    manifest = json.loads((comparisons / "manifest.json").read_text())
    this_week = write_comparison_set(tmp_path / "this week", records)
    [shard] = json.loads((this_week / "manifest.json").read_text())["shards"]
    (comparisons / "shards/fresh.jsonl").write_bytes((this_week / shard["file"]).read_bytes())
    manifest["shards"].append(shard | {"file": "shards/fresh.jsonl"})
    (comparisons / "manifest.json").write_text(json.dumps(manifest))

    def scored(name: str, **settings) -> dict:
        inputs = {"preference_model": str(scorer_dir), "comparisons": str(comparisons)}
        (tmp_path / name).mkdir()
        run(Job({"inputs": inputs, "settings": {"shards": ["shards/fresh.jsonl"]} | settings}, tmp_path / name))
        return json.loads((tmp_path / name / "result" / "results.json").read_text())

    found = scored("all")
    assert (found["accuracy"], found["n"]) == (1.0, 11)
    assert scored("some", most_pairs=5)["n"] == 5
    with pytest.raises(JobError, match="has 0 of the shards gone"):
        scored("none", shards=["gone.jsonl"])


def test_a_text_longer_than_those_of_training_is_counted_and_not_asked_about(scorer_dir, tmp_path):
    records = polite_comparisons(12, 0)
    model = PreferenceModel.load(scorer_dir)
    assert model.max_tokens == model.model.config.max_position_embeddings
    pairs = [token_pair(record, model.chat) for record in records]
    lengths = sorted(max(pair.better_tokens, pair.worse_tokens) for pair in pairs)
    trained_on = tmp_path / "trained on few"
    shutil.copytree(scorer_dir, trained_on)
    (trained_on / "results.json").write_text(json.dumps({"max_tokens": lengths[5]}))
    assert PreferenceModel.load(trained_on).max_tokens == lengths[5]
    found = check(tmp_path / "checked", trained_on, records)
    assert found["n"] == sum(length <= lengths[5] for length in lengths) < 12
    assert sum(found["too_long"].values()) == 12 - found["n"]
