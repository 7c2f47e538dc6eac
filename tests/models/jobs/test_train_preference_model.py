"""The training job on a world whose truth is known: it learns, resumes exactly, and refuses what it can't use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from models.chat.format import ChatFormat
from models.jobs.train_preference_model import run
from models.preference.model import PreferenceModel, PreferenceModelError, fresh_preference_model, pair_scores
from models.preference.pairs import TokenPair
from models.preference.settings import PreferenceModelSettings
from models.preference.training import Training, rate_factor
from models.runtime.job import Job, JobError
from models.runtime.settings import settings_from
from tests.models.preference_world import polite_comparisons, write_comparison_set

SETTINGS = {"batch_pairs": 16, "learning_rate": 2e-3}
# A score computed in another batch shape differs in the last bits of float32.
SCORE_TOLERANCE = 2e-6
NUM_HELD_OUT = 100


def train(
    out: Path, initial: Path, comparisons: Path, seed: int = 0, reference: Path | None = None, **settings: Any
) -> Path:
    """Run the job in this process; its result directory."""
    inputs = {"initial": str(initial), "comparisons": str(comparisons)}
    spec = {
        "job": "train_preference_model",
        "inputs": inputs if reference is None else inputs | {"reference": str(reference)},
        "settings": SETTINGS | settings,
        "seed": seed,
    }
    out.mkdir(parents=True)
    run(Job(spec, out))
    return out / "result"


def results_of(result: Path) -> dict[str, Any]:
    return json.loads((result / "results.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def comparisons_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison_set(tmp_path_factory.mktemp("set") / "set", polite_comparisons(400, NUM_HELD_OUT))


@pytest.fixture(scope="module")
def reference_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    records = polite_comparisons(0, 6, seed=1)
    (directory / "reference.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


@pytest.fixture(scope="module")
def preference_model_dir(
    policy_dir: Path, comparisons_dir: Path, reference_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return train(tmp_path_factory.mktemp("pm") / "out", policy_dir, comparisons_dir, reference=reference_dir)


def test_it_learns_what_the_raters_like(preference_model_dir):
    results = results_of(preference_model_dir)
    assert results["optimiser_steps"] == 25  # 400 pairs in batches of 16, once
    assert results["num_train"] == 400
    assert results["trained_on"] == ["helpful"]
    weights = load_file(preference_model_dir / "model.safetensors")
    assert results["num_parameters"] == sum(tensor.numel() for tensor in weights.values())
    # Steps of 16 pairs: [200, 400) is steps 14 to 25, 192 pairs; [100, 200) 8 to 13; [50, 100) 5 to 7.
    assert [block["n"] for block in results["learning_curve"]] == [48, 96, 192]
    assert results["learning_curve"][-1]["accuracy"] > 0.9
    held_out = results["held_out"]
    assert held_out["accuracy"] > 0.9
    assert held_out["ci"][0] > 0.8
    assert held_out["n"] == NUM_HELD_OUT
    assert held_out["by_source"]["world"]["n"] == held_out["by_question"]["helpful"]["n"] == NUM_HELD_OUT
    assert held_out["length_regressed"]["accuracy"] > 0.85


def test_metrics_begin_at_chance_and_end_lower(preference_model_dir):
    lines = [json.loads(line) for line in (preference_model_dir.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 26))
    assert lines[-1]["loss"] < 0.5 < lines[0]["loss"]
    # Warm-up of 5 % of 25 steps is 2 steps: half the rate, the full rate, then down to 1/23 of it.
    assert lines[0]["learning_rate"] == pytest.approx(1e-3)
    assert lines[1]["learning_rate"] == pytest.approx(2e-3)
    assert lines[-1]["learning_rate"] == pytest.approx(2e-3 / 23)


def test_shuffled_labels_teach_nothing(policy_dir, comparisons_dir, tmp_path):
    shuffled = results_of(train(tmp_path / "out", policy_dir, comparisons_dir, shuffle_labels=True))
    low, high = shuffled["held_out"]["ci"]
    assert low < 0.5 < high


def test_a_fresh_process_gives_the_same_scores(preference_model_dir, comparisons_dir, reference_dir, tmp_path):
    # The other process has the folder, moved elsewhere, and the messages as text: tokenizer, template, end-of-context
    # id and offset must come with the folder.
    shutil.copytree(preference_model_dir, tmp_path / "moved")
    lines = (preference_model_dir / "held_out_scores.jsonl").read_text().splitlines()
    scores = {line["id"]: line for line in map(json.loads, lines)}
    shard = comparisons_dir / "shards" / "00000.jsonl"
    records = [r for r in map(json.loads, shard.read_text().splitlines()) if r["split"] == "held_out"][:10]
    reference = [json.loads(line) for line in (reference_dir / "reference.jsonl").read_text().splitlines()]
    dialogues = [[*record["prompt"], *record["better"]] for record in records]
    dialogues += [[*record["prompt"], *record[side]] for record in reference for side in ("better", "worse")]
    code = (
        "import json, pathlib, sys\n"
        "from models.preference.model import PreferenceModel\n"
        "model = PreferenceModel.load(pathlib.Path(sys.argv[1]))\n"
        "scores = model.score(json.load(sys.stdin))\n"
        "print(json.dumps([scores, model.relative(scores)]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "moved")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    given = json.dumps(dialogues)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, env=environment)
    raw, relative = json.loads(done.stdout)
    expected = [scores[record["id"]]["better_score"] for record in records]
    assert raw[: len(records)] == pytest.approx(expected, abs=SCORE_TOLERANCE)
    # The offset is the mean over both sides of the reference set.
    offset = results_of(preference_model_dir)["offset"]
    assert sum(raw[len(records) :]) / 12 == pytest.approx(offset, abs=SCORE_TOLERANCE)
    assert relative == pytest.approx([score - offset for score in raw], abs=SCORE_TOLERANCE)
    assert abs(offset) > 100 * SCORE_TOLERANCE  # else a forgotten one would pass

    # What anybody has who reads the card: transformers, and the ids of the chat format.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "moved", num_labels=1).eval()
    chat = ChatFormat.load(tmp_path / "moved")
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([chat.score_ids(messages)])).logits for messages in dialogues]
    assert torch.cat(logits)[:, 0].tolist() == pytest.approx(raw, abs=SCORE_TOLERANCE)


def test_killed_and_started_again_it_ends_with_the_same_bytes(
    preference_model_dir, policy_dir, comparisons_dir, reference_dir, tmp_path
):
    inputs = {"initial": policy_dir, "comparisons": comparisons_dir, "reference": reference_dir}
    spec = {
        "job": "train_preference_model",
        "inputs": {role: str(folder) for role, folder in inputs.items()},
        "settings": SETTINGS | {"checkpoint_every": 4},
        "seed": 0,
        "threads": 1,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "models.jobs.train_preference_model"]
    command += ["--spec", str(tmp_path / "spec.json"), "--out", str(out)]
    process = subprocess.Popen(command)
    # Killed once it has gone past a checkpoint, so that metrics and weights run ahead of what was saved.
    deadline = time.monotonic() + 60
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 9:
        assert time.monotonic() < deadline
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result").exists()

    subprocess.run(command, check=True)
    assert json.loads((out / "run.json").read_text())["resumed_at_step"] >= 4  # 8, if it was written
    assert digests(out / "result") == digests(preference_model_dir)
    assert metrics.read_bytes() == (preference_model_dir.parent / "metrics.jsonl").read_bytes()
    assert not (out / "checkpoint").exists()


def test_harmless_weight_scales_the_harmless_gradient(policy_dir, tmp_path):
    # One helpful and one harmless pair in one batch. With λ = 3 the weights, scaled to mean 1, are 1/2 and 3/2.
    chat = ChatFormat.load(policy_dir)
    records = polite_comparisons(2, 0)
    records[1]["question"] = "harmless"
    job = Job({"seed": 0}, tmp_path)
    model = fresh_preference_model(policy_dir, chat, seed=0, device=job.device)
    pairs = [_token_pair(record, chat) for record in records]
    better, worse = pair_scores(model, pairs, chat.pad_id, job.device)
    losses = torch.nn.functional.softplus(worse - better).tolist()
    settings = PreferenceModelSettings(batch_pairs=2, harmless_weight=3.0)
    loss = Training(job, settings, model, chat, pairs).run()
    assert loss == pytest.approx((0.5 * losses[0] + 1.5 * losses[1]) / 2, abs=SCORE_TOLERANCE)


def _token_pair(record: dict[str, Any], chat: ChatFormat) -> TokenPair:
    from models.preference.comparison_set import token_pair

    return token_pair(record, chat)


def test_pairs_over_the_limit_are_counted(policy_dir, tmp_path):
    records = polite_comparisons(20, 5)
    records[3]["better"][0]["content"] = "thank you " * 200
    directory = write_comparison_set(tmp_path / "set", records)
    results = results_of(train(tmp_path / "out", policy_dir, directory, max_tokens=100))
    assert results["dropped_too_long"] == 1
    assert results["dropped_too_long_by_split"] == {"train": 1, "held_out": 0}
    assert results["num_train"] == 19
    assert results["optimiser_steps"] == 2  # 19 pairs in batches of 16: the last batch has 3


def sets_that_leave_a_split_empty() -> dict[str, tuple[list[dict[str, Any]], dict[str, int], str]]:
    """Records, what the manifest excludes, and the advice that fits."""
    tied = [record | {"tie": "tie"} for record in polite_comparisons(3, 3)]
    one = [record | {"split_key": "aa"} for record in polite_comparisons(5, 0)]
    long = polite_comparisons(2, 2)
    for record in long:
        record["better"][0]["content"] = "thank you " * 400
    return {
        "all held out": (
            polite_comparisons(0, 5),
            {},
            "0 train .*Everything is held out: lower comparisons",
        ),
        "none held out": (polite_comparisons(5, 0), {}, "0 held-out .*Nothing is held out: raise"),
        "one dialogue": (one, {}, "0 held-out .*All comparisons begin with one and the same message"),
        "all ties": (tied, {}, r"0 train .*In \d comparisons nobody chose a side"),
        "ties left out": ([], {"none_tie": 7}, "0 train .*In 7 comparisons nobody chose a side"),
        "others left out": ([], {"label_kind": 2}, r"All comparisons are left out \(label_kind 2\)"),
        "nothing": ([], {}, "0 train .*Collect comparisons, or import some"),
        "all too long": (long, {}, r"0 train .*\(2 are longer\).*Raise preference_model\.max_tokens"),
    }


@pytest.mark.parametrize("name", sets_that_leave_a_split_empty())
def test_an_empty_split_is_a_clear_error_with_the_advice_that_fits(policy_dir, tmp_path, name):
    records, excluded, said = sets_that_leave_a_split_empty()[name]
    directory = write_comparison_set(tmp_path / "set", records)
    manifest = json.loads((directory / "manifest.json").read_text()) | {"excluded": excluded}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(JobError, match=said):
        train(tmp_path / "out", policy_dir, directory)


def test_a_tampered_set_is_refused(policy_dir, tmp_path):
    directory = write_comparison_set(tmp_path / "set", polite_comparisons(5, 5))
    shard = directory / "shards" / "00000.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"thank", b"blame", 1))
    with pytest.raises(JobError, match="SHA-256"):
        train(tmp_path / "out", policy_dir, directory)


def test_divergence_is_an_error_that_names_the_setting(policy_dir, comparisons_dir, tmp_path):
    with pytest.raises(JobError, match="learning_rate"):
        train(tmp_path / "out", policy_dir, comparisons_dir, learning_rate=1e30)


def test_a_language_model_is_no_preference_model(policy_dir):
    with pytest.raises(PreferenceModelError, match="train_preference_model"):
        PreferenceModel.load(policy_dir)


def test_a_sequence_without_end_of_context_id_is_not_scored(preference_model_dir):
    model = PreferenceModel.load(preference_model_dir)
    with pytest.raises(ValueError, match="end-of-context id"):
        model.score_sequences([[5, 6, 7]])


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch_pairs": 0}, {"warmup_fraction": 2.0}, {"nonsense": 1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(JobError):
        settings_from(PreferenceModelSettings, settings)


def test_learning_rate_schedules_by_hand():
    # 10 steps, 2 of warm-up: 1/2, 1, then linear 1, 7/8, …, 1/8.
    factors = [rate_factor(step, 10, 2, "linear") for step in range(10)]
    assert factors == [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rate_factor(6, 10, 2, "cosine") == pytest.approx(0.5)
    assert rate_factor(9, 10, 2, "constant") == 1.0
