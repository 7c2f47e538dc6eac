"""Fresh comparisons against the last preference model: the bound worked out by hand, and who is no witness."""

from __future__ import annotations

import pytest

from models.preference.results import Accuracy
from orchestrator.judging.agreement import ALL, agreement

KNOWN = Accuracy(accuracy=0.70, ci=(0.62, 0.77), n=150, dialogues=150)


def fresh(accuracy: float, n: int = 100, design_effect: float = 1.0, dialogues: int | None = None) -> Accuracy:
    return Accuracy(accuracy=accuracy, ci=(0, 1), n=n, design_effect=design_effect, dialogues=dialogues)


def test_a_week_turned_round_contradicts_and_a_coin_does_not() -> None:
    # z = 2.326, z² = 5.41. 36 of 100: (0.36 + 5.41/200) / 1.0541 = 0.3672;
    # 2.326/1.0541 · sqrt(0.2304/100 + 5.41/40000) = 2.2070 · 0.04939 = 0.1090; together 0.4762.
    turned = agreement({ALL: KNOWN}, {ALL: fresh(0.36)})[ALL]
    assert turned.fresh_high == pytest.approx(0.4762, abs=2e-4)
    assert turned.contradicts
    # 40 of 100: 0.4051 + 2.2070 · sqrt(0.24/100 + 5.41/40000) = 0.4051 + 0.1111 = 0.5162.
    coin = agreement({ALL: KNOWN}, {ALL: fresh(0.40)})[ALL]
    assert coin.fresh_high == pytest.approx(0.5162, abs=2e-4)
    assert (coin.contradicts, coin.fell) == (False, True)
    honest = agreement({ALL: KNOWN}, {ALL: fresh(0.66)})[ALL]
    assert (honest.contradicts, honest.fell) == (False, False)


def test_comparisons_of_one_dialogue_count_less() -> None:
    # As 50 independent ones 36 % is 0.3743 + 0.1502 = 0.524 and may be a coin's.
    part = agreement({ALL: KNOWN}, {ALL: fresh(0.36, design_effect=2.0)})[ALL]
    assert part.fresh_high == pytest.approx(0.5245, abs=1e-3)
    assert not part.contradicts


def test_an_accuracy_that_fell_beyond_chance_is_seen_without_being_turned_round() -> None:
    # 0.52 of 1,000: at most 0.557, below the 0.62 that the model surely had.
    part = agreement({ALL: KNOWN}, {ALL: fresh(0.52, n=1000)})[ALL]
    assert (part.contradicts, part.fell) == (False, True)


def test_where_the_model_knew_nothing_nothing_contradicts_it() -> None:
    unsure = Accuracy(accuracy=0.38, ci=(0.25, 0.53), n=50)
    held_out = {ALL: KNOWN, "helpful": KNOWN, "harmless": unsure}
    parts = agreement(held_out, {ALL: fresh(0.2), "helpful": fresh(0.2), "harmless": fresh(0.2), "other": fresh(0.2)})
    assert list(parts) == [ALL, "helpful"]
    nothing_fresh = Accuracy(accuracy=None, ci=(0, 1), n=0)
    assert agreement({ALL: KNOWN}, {ALL: nothing_fresh}) == {}
