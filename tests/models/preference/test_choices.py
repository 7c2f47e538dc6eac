"""Choices of the training job beyond its default: soft targets, ties, language-model loss, offset, PMP, skills."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from models.chat.format import ChatFormat
from models.jobs.train_preference_model import run
from models.model_folders.loading import load_causal_lm
from models.preference.comparison_set import token_pair
from models.preference.language_loss import frozen_output_layer, good_sample_loss
from models.preference.model import PreferenceModel, PreferenceModelError, fresh_preference_model, pair_scores
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training
from models.runtime.job import Job, JobError
from tests.models.preference_world import comparison, polite_comparisons, write_comparison_set

# Another batch shape differs in the last bits of float32.
TOLERANCE = 2e-6


def train(out: Path, inputs: dict[str, Path], **settings: Any) -> dict[str, Any]:
    out.mkdir()
    run(Job({"inputs": {role: str(path) for role, path in inputs.items()}, "settings": settings}, out))
    found: dict[str, Any] = json.loads((out / "result" / "results.json").read_text())
    return found


def with_ties(num_train: int, num_held_out: int) -> list[dict[str, Any]]:
    """Comparisons of the polite world with strength 4, and half as many ties again."""
    records = [record | {"strength": 4} for record in polite_comparisons(num_train, num_held_out)]
    generator = random.Random(1)
    for number in range(len(records) // 2):
        split = "train" if number < num_train // 2 else "held_out"
        records.append(comparison(1000 + number, split, generator) | {"tie": "tie"})
    return records


def test_ties_teach_with_soft_targets_alone(policy_dir, tmp_path):
    inputs = {"initial": policy_dir, "comparisons": write_comparison_set(tmp_path / "set", with_ties(40, 10))}
    hard = train(tmp_path / "hard", inputs)
    assert (hard["num_train"], hard["num_held_out"]) == (40, 10)
    assert hard["ties"] | {"held_out_mean_abs_gap": 0} == {
        "train": 0, "left_out": 20, "held_out": 5, "held_out_mean_abs_gap": 0,
    }  # fmt: skip
    soft = train(tmp_path / "soft", inputs, targets="soft")
    assert (soft["num_train"], soft["num_held_out"]) == (60, 10)
    assert (soft["ties"]["train"], soft["ties"]["left_out"]) == (20, 0)
    assert soft["choices"]["targets"]["by_strength"] == [0.65, 0.8, 0.9, 0.97]
    assert hard["choices"]["targets"].startswith("hard")
    # Ties that the accuracy counted would have changed n.
    assert soft["held_out"]["n"] == 10


def test_the_soft_loss_of_a_step_by_hand(policy_dir, tmp_path):
    # Strength 2 is 0.8, a tie 0.5: the job's loss before its first step is the cross-entropy of the plain scores.
    chat = ChatFormat.load(policy_dir)
    records = polite_comparisons(2, 0)
    records[0]["strength"], records[1]["tie"] = 2, "tie"
    job = Job({"seed": 0}, tmp_path)
    model = fresh_preference_model(policy_dir, chat, seed=0, device=job.device)
    pairs = [token_pair(record, chat) for record in records]
    better, worse = pair_scores(model, pairs, chat.pad_id, job.device)
    right, wrong = (torch.nn.functional.softplus(sign * (worse - better)).tolist() for sign in (1, -1))
    expected = (0.8 * right[0] + 0.2 * wrong[0] + 0.5 * right[1] + 0.5 * wrong[1]) / 2
    settings = PreferenceModelSettings(batch_pairs=2, targets="soft")
    assert Training(job, settings, model, chat, pairs).run() == pytest.approx(expected, abs=TOLERANCE)


def test_the_language_model_loss_is_the_initial_policys_on_the_better_reply(policy_dir):
    # Before any step the trunk is the initial policy's, so its own loss on the labels is the oracle.
    chat = ChatFormat.load(policy_dir)
    pairs = [token_pair(record, chat) for record in polite_comparisons(3, 0)]
    model = fresh_preference_model(policy_dir, chat, seed=0, device=torch.device("cpu"))
    layer = frozen_output_layer(policy_dir, torch.device("cpu"))
    policy, expected = load_causal_lm(policy_dir), []
    for pair in pairs:
        ids = torch.tensor([[*pair.prefix_ids, *pair.better_ids[:-1]]])
        labels = ids.clone()
        labels[:, : len(pair.prefix_ids)] = -100
        expected.append(policy(input_ids=ids, labels=labels).loss.item())
    found = good_sample_loss(model, layer, pairs, chat.pad_id, torch.device("cpu"))
    assert found.item() == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert all(not parameter.requires_grad for parameter in layer.parameters())


def test_lm_coef_is_recorded_and_changes_the_weights(policy_dir, tmp_path):
    inputs = {"initial": policy_dir, "comparisons": write_comparison_set(tmp_path / "set", polite_comparisons(16, 4))}
    plain, added = train(tmp_path / "plain", inputs), train(tmp_path / "added", inputs, lm_coef=0.5)
    # 0.5 times some nats a token more.
    assert added["train_loss"] > plain["train_loss"] + 0.5
    assert (plain["choices"]["lm_coef"], added["choices"]["lm_coef"]) == (0.0, 0.5)
    card = (tmp_path / "added" / "result" / "README.md").read_text()
    for row in ("| lm coef | 0.5 |", "| optimiser | AdamW |", "| betas | [0.9, 0.98] |", "| context tokens | 512 |"):
        assert row in card


def test_the_offset_is_the_mean_over_the_reference_set_and_comes_with_the_model(policy_dir, tmp_path):
    reference = tmp_path / "reference"
    reference.mkdir()
    records = polite_comparisons(0, 6, seed=7)
    (reference / "reference.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    inputs = {"initial": policy_dir, "comparisons": write_comparison_set(tmp_path / "set", polite_comparisons(16, 4))}
    results = train(tmp_path / "out", inputs | {"reference": reference})
    model = PreferenceModel.load(tmp_path / "out" / "result")
    scores = model.score([[*record["prompt"], *record[side]] for record in records for side in ("better", "worse")])
    assert results["offset"] == model.offset == pytest.approx(sum(scores) / 12, abs=TOLERANCE)
    assert sum(model.relative(scores)) == pytest.approx(0, abs=12 * TOLERANCE)
    digest = hashlib.sha256((reference / "reference.jsonl").read_bytes()).hexdigest()
    assert results["reference"] == {"sha256": digest, "num_pairs": 6, "too_long": 0}

    without = train(tmp_path / "without", inputs)
    assert (without["offset"], without["reference"]) == (None, None)
    with pytest.raises(PreferenceModelError, match="no offset"):
        PreferenceModel.load(tmp_path / "without" / "result").relative([1.0])


def test_pmp_is_the_start_of_the_trunk_and_not_of_the_head(policy_dir, tmp_path):
    comparisons = write_comparison_set(tmp_path / "set", polite_comparisons(16, 4))
    inputs = {"initial": policy_dir, "comparisons": comparisons}
    train(tmp_path / "pmp", inputs, learning_rate=5e-3)
    pmp = tmp_path / "pmp" / "result"
    chat = ChatFormat.load(policy_dir)
    cpu = torch.device("cpu")
    from_pmp, plain = (fresh_preference_model(start, chat, 0, cpu) for start in (pmp, policy_dir))
    trained = PreferenceModel.load(pmp).model
    assert torch.equal(from_pmp.model.layers[0].mlp.up_proj.weight, trained.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(from_pmp.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(from_pmp.score.weight, plain.score.weight)
    results = train(tmp_path / "fine", inputs | {"pmp": pmp})
    assert results["choices"]["start"].endswith("(pmp)")
    # What one pass has learned shows in the loss of the next from its first step on.
    first = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("pmp", "fine")]
    assert first[0]["loss"] != first[1]["loss"]


def test_a_start_with_another_tokenizer_is_refused(policy_dir, qwen2_policy_dir, tmp_path):
    comparisons = write_comparison_set(tmp_path / "set", polite_comparisons(4, 2))
    with pytest.raises(JobError, match="pre-trained preference model"):
        train(tmp_path / "out", {"initial": policy_dir, "comparisons": comparisons, "pmp": qwen2_policy_dir})


def test_skills_are_mixed_in_and_have_an_accuracy_of_their_own(policy_dir, tmp_path):
    skill = [record | {"source": "summaries", "id": f"s{record['id']}"} for record in polite_comparisons(8, 3, seed=5)]
    inputs = {
        "initial": policy_dir,
        "comparisons": write_comparison_set(tmp_path / "set", polite_comparisons(16, 4)),
        "skills": write_comparison_set(tmp_path / "skills", skill),
    }
    results = train(tmp_path / "out", inputs)
    assert (results["num_train"], results["num_held_out"]) == (24, 4)
    assert {name: entry["n"] for name, entry in results["held_out"]["by_source"].items()} == {"world": 4}
    assert {name: entry["n"] for name, entry in results["skills"]["by_source"].items()} == {"summaries": 3}
    assert results["choices"]["skills"] is True
    for name, count in (("held_out", 4), ("skill", 3)):
        lines = (tmp_path / "out" / "result" / f"{name}_scores.jsonl").read_text().splitlines()
        assert len(lines) == count


def test_a_skill_learned_well_does_not_hide_that_raters_labels_say_nothing(policy_dir, tmp_path):
    """Gates read `held_out`: the raters' pairs, whose better side is drawn by lot, and not the skill's."""
    by_lot = [
        record | ({"better": record["worse"], "worse": record["better"]} if number % 2 else {})
        for number, record in enumerate(polite_comparisons(100, 60, seed=1))
    ]
    skill = [record | {"source": "polite", "id": f"s{record['id']}"} for record in polite_comparisons(300, 60, seed=2)]
    inputs = {
        "initial": policy_dir,
        "comparisons": write_comparison_set(tmp_path / "set", by_lot),
        "skills": write_comparison_set(tmp_path / "skills", skill),
    }
    results = train(tmp_path / "out", inputs, learning_rate=2e-3, batch_pairs=16)
    assert results["skills"]["accuracy"] > 0.9
    assert results["held_out"]["accuracy"] == pytest.approx(0.5, abs=0.1)


def test_skills_do_not_stand_in_for_comparisons_of_a_split(policy_dir, tmp_path):
    skill = [record | {"source": "polite", "id": f"s{record['id']}"} for record in polite_comparisons(8, 3, seed=5)]
    inputs = {
        "initial": policy_dir,
        "comparisons": write_comparison_set(tmp_path / "set", polite_comparisons(16, 0)),
        "skills": write_comparison_set(tmp_path / "skills", skill),
    }
    with pytest.raises(JobError, match="has 0 held-out comparisons"):
        train(tmp_path / "out", inputs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_of_training_is_recorded(policy_dir, tmp_path, precision):
    comparisons = write_comparison_set(tmp_path / "set", polite_comparisons(8, 2))
    results = train(tmp_path / "out", {"initial": policy_dir, "comparisons": comparisons}, precision=precision)
    assert (results["choices"]["precision"], results["choices"]["dtype"]) == (precision, "float32")
    assert f"| precision | {precision} |" in (tmp_path / "out" / "result" / "README.md").read_text()
