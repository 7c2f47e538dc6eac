"""Detectors of prompts far from home: disjoint parts, layer and threshold, and the folder that a server loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.chat.format import ChatFormat, Message
from models.chat.openings import opening
from models.detectors.detector import OodDetector, OodDetectorError, hidden_states, save_detector
from models.detectors.fitting import (
    candidate_layers,
    fit_detector,
    layer_by_rule,
    split_by_opening,
)
from models.detectors.settings import OodSettings
from models.jobs import fit_ood_detector
from models.model_folders.loading import load_causal_lm
from models.model_folders.saving import model_card, save_model
from models.runtime.job import Job, JobError

# Between batches of other shapes: that of float32 states, after the covariance was inverted.
SCORE_ROUNDING = 1e-3


def prompt(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


HOME = [prompt(f"What is {a} plus {b}?") for a in range(8) for b in range(12)]
FAR = [prompt(text) for text in ("zzzz qqqq xxxx", "]]]]{{{{####", "DROP TABLE raters; --", "\n\n\n\t\t ??")]


@pytest.fixture(scope="module")
def policy(policy_dir: Path) -> tuple[Any, ChatFormat]:
    return load_causal_lm(policy_dir), ChatFormat.load(policy_dir)


def write_prompts(folder: Path, prompts: list[list[Message]], kind: str = "helpful") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.jsonl").open("a") as file:
        file.writelines(json.dumps({"kind": kind, "messages": messages}) + "\n" for messages in prompts)
    return folder


@pytest.fixture
def run_job(tmp_path: Path, policy_dir: Path) -> Callable[..., Path]:
    def run(name: str, inputs: dict[str, Path], **settings: object) -> Path:
        out = tmp_path / name
        out.mkdir()
        paths = {role: str(path) for role, path in inputs.items()} | {"policy": str(policy_dir)}
        fit_ood_detector.run(Job({"job": "fit_ood_detector", "inputs": paths, "settings": settings}, out))
        return out / "result"

    return run


def test_every_opening_is_in_one_part_whatever_the_order() -> None:
    dialogues = [*HOME, *[prompt(f"  what is {number} PLUS 3 ") for number in range(8)]]
    parts = split_by_opening(dialogues, seed=0)
    assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(len(dialogues)))
    openings = [{opening(dialogues[index]) for index in part} for part in parts]
    # 96 openings: 0.7 and 0.85 of them are 67 and 81. The eight written otherwise share theirs.
    assert [len(part) for part in openings] == [67, 14, 15]
    assert not openings[0] & openings[1] | openings[0] & openings[2] | openings[1] & openings[2]
    backwards = split_by_opening(dialogues[::-1], seed=0)
    assert [{opening(dialogues[::-1][index]) for index in part} for part in backwards] == openings
    assert split_by_opening(dialogues, seed=1) != parts
    with pytest.raises(ValueError, match="7 different openings"):
        split_by_opening(HOME[:7] * 3, seed=0)


def test_layers_to_choose_from() -> None:
    assert candidate_layers(4) == [1, 2, 3, 4]
    assert candidate_layers(64) == [8, 16, 24, 32, 40, 48, 56, 64]
    # The paper's: the last of 4 and of 6 layers, layer 32 of 64.
    assert [layer_by_rule(number) for number in (4, 6, 64)] == [4, 6, 32]


def test_alarms_on_turns_of_one_dialogue_are_no_alarms_of_their_own(policy: tuple[Any, ChatFormat]) -> None:
    turns: list[list[Message]] = [
        [*prompt(opening), {"role": "assistant", "content": "]]]]"}, *prompt(text)]
        for opening in ("zzzz {{ }} ####", "DROP ;; qqqq")
        for text in ("}}}}####]]]]", "xxxx zzzz")
    ]
    told = fit_detector(*policy, HOME, OodSettings(detector="mahalanobis", quantile=0.9), others=turns).results
    assert told.others is not None
    # All four beyond, of two dialogues: they count as two, with Student's t of 1: 2 / (2 + 12.7062^2).
    assert (told.others.beyond, told.others.n) == (4, 4)
    assert told.others.ci == (pytest.approx(0.012236, abs=1e-6), 1.0)


@pytest.mark.parametrize("detector", ["mahalanobis", "relative", "exposure"])
def test_strangers_are_beyond_the_threshold(policy: tuple[Any, ChatFormat], detector: Any, tmp_path: Path) -> None:
    model, chat = policy
    settings = OodSettings(detector=detector, quantile=0.9)
    examples = [*FAR, *[prompt(f"zzzz {{{{ {number} ####") for number in range(26)]]
    fitted = fit_detector(model, chat, HOME, settings, examples=examples, others=[FAR[0], prompt("}}}}####]]]]")])
    told = fitted.results
    assert (told.num_fit, told.num_validation, told.false_alarms.n) == (67, 14, 15)
    # What opens like an example is not judged again.
    assert told.others.n == 1
    assert told.layer_chosen_by == "validation"
    assert set(told.examples.auroc_by_layer) == {"1", "2"}
    assert told.examples.auroc_by_layer[str(fitted.layer)] == max(told.examples.auroc_by_layer.values())
    save_detector(
        model,
        chat,
        fitted.statistics,
        {"threshold": fitted.threshold, "kind": detector, "layer": fitted.layer},
        tmp_path,
    )
    detector = OodDetector.load(tmp_path)
    # 0.9 of the 14 that chose the threshold lie within: it is the score of rank 13 (0.9 · 13 = 11.7, the higher: 12).
    parts = split_by_opening(sorted(HOME, key=str), seed=0)
    validation = [sorted(HOME, key=str)[index] for index in parts[1]]
    within = detector.threshold + SCORE_ROUNDING
    assert sum(score <= within for score in detector.score(validation)) == 13
    assert min(detector.score(FAR)) > detector.threshold


def test_prompts_of_home_that_open_like_an_example_are_left_out(policy: tuple[Any, ChatFormat]) -> None:
    model, chat = policy
    fitted = fit_detector(model, chat, HOME, OodSettings(layer=1), examples=[prompt("what is 3 plus 4"), *FAR])
    assert fitted.results.left_out == 1
    assert (fitted.layer, fitted.results.layer_chosen_by) == (1, "setting")
    with pytest.raises(ValueError, match=r"the model has 0 \(embeddings\) to 2"):
        fit_detector(model, chat, HOME, OodSettings(layer=3))
    with pytest.raises(ValueError, match="layer is -1; expected at least 0"):
        OodSettings(layer=-1)
    with pytest.raises(ValueError, match="needs examples"):
        fit_detector(model, chat, HOME, OodSettings(detector="exposure"))


def test_the_state_read_is_that_of_the_last_token(policy: tuple[Any, ChatFormat]) -> None:
    model, chat = policy
    sequences = [chat.encode(one, reply=True) for one in (*FAR, *HOME[:3])]
    embedded, last = hidden_states(model, chat.pad_id, sequences, [0, 2])
    for row, ids in enumerate(sequences):
        with torch.no_grad():
            plain = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert torch.allclose(last[row], plain[2][0, -1], atol=1e-5)
        assert torch.allclose(embedded[row], plain[0][0, -1], atol=1e-5)
    # Longer than the model's context of 512: its end is read.
    long = list(range(40, 60)) * 40
    (cut,) = hidden_states(model, chat.pad_id, [long], [2])
    (end,) = hidden_states(model, chat.pad_id, [long[-512:]], [2])
    assert torch.equal(cut, end)


def test_a_prompts_score_does_not_depend_on_its_neighbours(policy: tuple[Any, ChatFormat]) -> None:
    model, chat = policy
    fitted = fit_detector(model, chat, HOME, OodSettings())
    detector = OodDetector(model, chat, "relative", fitted.layer, fitted.statistics, fitted.threshold)
    asked = [*FAR, *HOME[:2]]
    assert detector.score(asked) == pytest.approx([detector.score([one])[0] for one in asked], abs=SCORE_ROUNDING)


def test_the_job_writes_what_a_server_loads_and_the_same_bytes_again(
    run_job: Callable[..., Path], tmp_path: Path
) -> None:
    prompts = write_prompts(write_prompts(tmp_path / "prompts", HOME), FAR[2:], "harmless")
    examples = write_prompts(tmp_path / "examples", FAR[:2], "harmful")
    inputs = {"prompts": prompts, "examples": examples}
    folder = run_job("first", inputs, detector="exposure", quantile=0.9)
    again = run_job("again", inputs, detector="exposure", quantile=0.9)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == {path.name: path.read_bytes() for path in again.iterdir()}
    results = json.loads(written["results.json"])
    assert results["kind"] == "exposure"
    assert (results["num_examples"], results["others"]["n"]) == (2, 2)
    detector = OodDetector.load(folder)
    assert detector.threshold == results["threshold"]
    assert min(detector.score(FAR[:2])) > detector.threshold


def test_mistakes_are_told_in_a_line(run_job: Callable[..., Path], tmp_path: Path) -> None:
    few = write_prompts(tmp_path / "few", HOME[:5])
    (tmp_path / "empty").mkdir()
    for name, folder, settings, message in (
        ("job 1", few, {}, "5 different openings"),
        ("job 2", tmp_path / "empty", {}, "expected a prompt set"),
        ("job 3", few, {"detector": "oracle"}, "detector is 'oracle'"),
        ("job 4", few, {"home": "harmless"}, "0 different openings"),
    ):
        with pytest.raises(JobError, match=message):
            run_job(name, {"prompts": folder}, **settings)


def test_a_folder_of_the_first_format_still_scores(policy: tuple[Any, ChatFormat], tmp_path: Path) -> None:
    model, chat = policy
    sequences = [chat.encode(one, reply=True) for one in HOME]
    (states,) = hidden_states(model, chat.pad_id, sequences, [1])
    mean = states.mean(0)
    covariance = 0.9 * torch.cov(states.T) + 0.1 * torch.cov(states.T).diagonal().mean() * torch.eye(len(mean))
    precision = torch.linalg.inv(covariance)
    save_model(model, tmp_path, chat, model_card("Detector", "", {}))
    save_file({"mean": mean, "precision": precision.contiguous()}, tmp_path / "statistics.safetensors")
    (tmp_path / "detector.json").write_text('{"kind": "mahalanobis", "layer": 1, "threshold": 99.5}')
    detector = OodDetector.load(tmp_path)
    centred = (states[:4] - mean).double()
    expected = ((centred @ precision.double()) * centred).sum(-1).tolist()
    assert detector.threshold == 99.5
    assert detector.score(HOME[:4]) == pytest.approx(expected, abs=SCORE_ROUNDING)


def test_what_is_no_detector_is_refused(policy_dir: Path, policy: tuple[Any, ChatFormat], tmp_path: Path) -> None:
    model, chat = policy
    with pytest.raises(OodDetectorError, match="is no detector"):
        OodDetector.load(policy_dir)
    (tmp_path / "detector.json").write_text('{"kind": "oracle"}')
    with pytest.raises(OodDetectorError, match="kind 'oracle'"):
        OodDetector.load(tmp_path)
    # A file without the numbers of its kind.
    statistics = {"mean": torch.zeros(64)}
    save_detector(model, chat, statistics, {"kind": "relative", "layer": 1, "threshold": 0.0}, tmp_path)
    with pytest.raises(OodDetectorError, match="cholesky"):
        OodDetector.load(tmp_path)
