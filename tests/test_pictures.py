"""The pictures of the report: there where there are numbers, the same bytes for the same numbers."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from orchestrator.pictures import PICTURES, draw_all
from orchestrator.report import to_markdown

pytest.importorskip("torch")

from models.preference_report import ScoredPair, held_out_report
from models.scaling import ScalingPoint, fit_scaling


def numbers(num_pairs: int, tranches: tuple[str, ...]) -> dict[str, Any]:
    """What a cycle knows, as far as the pictures need it."""
    generator = random.Random(0)
    pairs = [
        ScoredPair(
            str(number),
            source="a very long name of a source of comparisons",
            question="harmless" if number % 3 == 0 else "helpful",
            better_score=generator.gauss(0.6, 1),
            worse_score=generator.gauss(0.0, 1),
            length_difference=number % 7 - 3,
            rater=str(number % 12),
            tranche=tranches[number % len(tranches)],
            turn=number % 10 + 1,
        )
        for number in range(num_pairs)
    ]
    scores = {kind: [generator.gauss(1.5, 0.5) for _ in range(40)] for kind in ("helpful", "harmless")}
    curve = [ScalingPoint(10**6, 100 * 2**k, 0.55 + 0.02 * k, 300) for k in range(4)]
    points = [asdict(point) for point in curve]
    distilled = [
        {"tokens": 100 * i, "held_out_kl_nats": 1 / (1 + i), "train_kl_nats": 1.1 / (1 + i) if i else None}
        for i in range(5)
    ]
    return {
        "distillation": {"held_out_kl_before": 1.0, "held_out_kl_after": 0.2, "distillation_curve": distilled}
        | {"num_tokens": 400, "prompt_version": "hhh-1"},
        "preference_model": {"held_out": held_out_report(pairs)},
        "scaling": {"source": "the ledger", "points": points, **fit_scaling(curve)},
        "policy_scores": {"snapshot": scores, "initial": scores},
        "training": {"curve": [{"samples": i, "kl_nats": i * i, "score": i + i % 2} for i in range(12)]},
    }


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_every_picture_is_drawn_600_pixels_wide_and_the_same_twice():
    known = numbers(300, ("base", "online"))
    pictures = draw_all(known)
    assert [picture.name for picture in pictures] == list(PICTURES)
    for picture in pictures:
        assert size(picture.png)[0] == 600, picture.name
    assert [picture.png for picture in draw_all(known)] == [picture.png for picture in pictures]


@pytest.mark.parametrize("num_pairs", [1, 3])
def test_a_handful_of_held_out_comparisons_can_be_drawn(num_pairs):
    assert {"reliability", "score_histograms"} <= {picture.name for picture in draw_all(numbers(num_pairs, ("base",)))}


def test_a_cycle_without_a_preference_model_has_no_pictures():
    assert draw_all({"preference_model": None, "policy_scores": {}}) == []


def test_the_report_shows_pictures_where_they_are_and_mistakes_by_id():
    known = numbers(300, ("base", "online"))
    cycle = {
        "cycle": 3,
        "name": "small",
        "decision": None,
        "snapshot": None,
        "reasons": [],
        "comparison_set": None,
        "orientation": None,
        "evaluation": None,
        "best_of_n": None,
        "elo": None,
    }
    pictures = draw_all(known)
    text = to_markdown(cycle | known, [(picture, f"{picture.name}.png") for picture in pictures])
    for picture in pictures:
        assert f"![{picture.caption}]({picture.name}.png)" in text
    worst = known["preference_model"]["held_out"]["mistakes"][0]
    assert f"| {worst['id']} | {worst['source']} | {worst['question']} |" in text
    assert "| PM calibration | " in text
    assert "| … harmless | " in text


def test_nothing_is_drawn_before_it_is_asked_for():
    code = "import sys, orchestrator.stages; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
