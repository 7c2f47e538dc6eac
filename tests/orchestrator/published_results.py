"""Results of a preference model as its job publishes them, with as much in them as a test is about."""

from __future__ import annotations

from typing import Any

from models.preference.results import HeldOutReport, PreferenceModelResults
from models.runtime.results import result_to_json


def held_out_report(**fields: Any) -> HeldOutReport:
    """A held-out report in which half of 100 comparisons are ordered rightly, but for the fields given."""
    measured: dict[str, Any] = {"accuracy": 0.5, "ci": (0.4, 0.6), "n": 100, "by_source": {}, "by_question": {}}
    return HeldOutReport(**measured | fields)


def preference_model_results(held_out: HeldOutReport | None = None, **fields: Any) -> dict[str, Any]:
    """The results.json of `preference_model`."""
    return result_to_json(preference_model(held_out, **fields))


def preference_model(held_out: HeldOutReport | None = None, **fields: Any) -> PreferenceModelResults:
    """A preference model trained on 200 comparisons, but for the fields given."""
    measured: dict[str, Any] = {
        "num_train": 200,
        "num_held_out": 100,
        "num_parameters": 10**6,
        "trained_on": ("helpful",),
        "dropped_too_long": 0,
        "max_tokens": 512,
        "optimiser_steps": 4,
        "train_loss": 0.5,
        "choices": {},
        "held_out": held_out or held_out_report(),
    }
    return PreferenceModelResults(**measured | fields)
