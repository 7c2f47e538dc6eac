"""Distance from home: by hand, and of prompts unlike those that a detector was fitted on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.chat import ChatFormat, Message
from models.huggingface import load_causal_lm
from models.ood import OodDetector, OodDetectorError, distances, fit_detector, hidden_states


def prompt(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


HOME = [prompt(f"What is {a} plus {b}?") for a in range(8) for b in range(5)]
FAR = [prompt(text) for text in ("zzzz qqqq xxxx", "]]]]{{{{####", "DROP TABLE raters; --")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, policy_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    chat = ChatFormat.load(policy_dir)
    fit_detector(load_causal_lm(policy_dir), chat, HOME, folder, layer=1, quantile=0.9)
    return folder


def test_distances_by_hand() -> None:
    mean, precision = torch.tensor([1.0, -1.0]), torch.diag(torch.tensor([1.0, 4.0]))
    # (4, 0) is (3, 1) from the mean: 9·1 + 1·4 = 13. The mean itself is at 0.
    assert distances(torch.tensor([[4.0, 0.0], [1.0, -1.0]]), mean, precision) == [13.0, 0.0]
    # The distance of a row and of its mirror image at the mean are equal.
    assert distances(torch.tensor([[-2.0, -2.0]]), mean, precision) == [13.0]


def test_the_threshold_is_the_quantile_of_home_and_strangers_are_beyond_it(folder: Path) -> None:
    detector = OodDetector.load(folder)
    home = detector.score(HOME)
    # 0.9 of 40 prompts: 36 within, 4 beyond.
    assert sum(score <= detector.threshold for score in home) == 36
    assert min(detector.score(FAR)) > max(home)


def test_a_prompts_score_does_not_depend_on_its_neighbours(folder: Path) -> None:
    detector = OodDetector.load(folder)
    together = detector.score([*FAR, *HOME[:2]])
    assert together == pytest.approx([detector.score([one])[0] for one in (*FAR, *HOME[:2])], rel=1e-4)


def test_the_state_read_is_that_of_the_last_token(policy_dir: Path) -> None:
    chat, model = ChatFormat.load(policy_dir), load_causal_lm(policy_dir)
    states = hidden_states(model, chat, HOME[:3], layer=2)
    ids = torch.tensor([chat.encode(HOME[0], reply=True)])
    with torch.no_grad():
        plain = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, -1]
    assert torch.allclose(states[0], plain, atol=1e-5)


def test_what_is_no_detector_is_refused(policy_dir: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OodDetectorError, match="is no detector"):
        OodDetector.load(policy_dir)
    settings = json.loads((folder / "detector.json").read_text())
    (tmp_path / "detector.json").write_text(json.dumps(settings | {"kind": "oracle"}))
    with pytest.raises(OodDetectorError, match="kind 'oracle'"):
        OodDetector.load(tmp_path)
    with pytest.raises(ValueError, match="at least 2"):
        fit_detector(None, None, HOME[:1], tmp_path, layer=1, quantile=0.9)  # type: ignore[arg-type]
