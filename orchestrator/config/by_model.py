"""Defaults that depend on the model: one that was published wants smaller steps than one that begins from nothing here.

What a file gives holds; what it leaves out is filled in when it is read, so that a cycle's stored configuration has it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models.preference.settings import PreferenceModelSettings

logger = logging.getLogger(__name__)


class Rates(NamedTuple):
    """Learning rates for whole weights, per step of AdamW."""

    preference_model: float
    policy: float


# Fine-tuning: TRL, OpenRLHF and verl take 5e-6 to 2e-5 for reward models and 1e-6 to 3e-6 for PPO at these sizes.
FROM_SCRATCH_PARAMETERS = 20_000_000
"""Below it a model has the rates of one that is pretrained here: nobody publishes a smaller one to be fine-tuned."""
BY_SIZE = (
    (500_000_000, Rates(2e-5, 3e-6)),
    (3_000_000_000, Rates(1e-5, 1e-6)),
    (math.inf, Rates(5e-6, 1e-6)),
)
"""Up to so many parameters."""
UNKNOWN = Rates(1e-5, 1e-6)
"""For a model that lies elsewhere, on the hub say, and can't be counted here."""
PRE_TRAINING = 10.0
"""Of the preference model on ranked public answers, over the rate of its fine-tuning: arXiv 2204.05862, A.2."""
ADAPTERS = 10.0
"""Adapters (`lora_rank`) bear larger steps than whole weights."""
WARMUP_STEPS = 20
"""Of PPO: docs/log/ppo.md, "The first step of Adam on a published model"."""
GAE_LAMBDA = 1.0
"""With replies of hundreds of tokens: docs/log/ppo.md, "Advantages of long replies"."""
REPLIES = 256
"""Of a rollout."""
REPLY_TOKENS = 512
"""Of the longest reply, where the preference model hears texts twice as long."""


def with_defaults_by_model(raw: dict[str, Any]) -> dict[str, Any]:
    """The raw configuration with what suits a published model, where it has one and gives no other value."""
    initial = raw.get("initial_policy")
    path = initial.get("path") if isinstance(initial, dict) else None
    if not isinstance(path, str):
        return raw
    parameters = num_parameters(Path(os.path.expandvars(path)))
    rates = rates_for(parameters)
    if rates is None:
        return raw
    filled = dict(raw)
    for section, chosen in _chosen(raw, rates).items():
        given = raw.get(section, {})
        if isinstance(given, dict):
            filled[section] = chosen | given
            for name, value in chosen.items():
                if name not in given:
                    logger.info("%s.%s: %g, for %s", section, name, value, _size_said(parameters))
    return filled


def _chosen(raw: Mapping[str, Any], rates: Rates) -> dict[str, dict[str, int | float]]:
    """What a published model is trained with, by section; the defaults of the sections suit the demo's."""
    ppo = _section(raw, "ppo")
    heard = _number(_section(raw, "preference_model"), "max_tokens", PreferenceModelSettings.max_tokens)
    reply_tokens = _number(ppo, "max_reply_tokens", min(REPLY_TOKENS, max(1, heard // 2)))
    chosen: dict[str, dict[str, int | float]] = {
        "preference_model": {"learning_rate": rates.preference_model},
        "ppo": {
            "learning_rate": rates.policy,
            "warmup_steps": WARMUP_STEPS,
            "gae_lambda": GAE_LAMBDA,
            "prompts_per_iteration": max(1, REPLIES // max(1, _number(ppo, "samples_per_prompt", 1))),
            "max_reply_tokens": reply_tokens,
        },
        # Judged and served as it was trained.
        "evaluation": {"max_reply_tokens": reply_tokens},
        "serving": {"max_reply_tokens": reply_tokens},
    }
    if "pmp" in raw:
        chosen["pmp"] = {"learning_rate": PRE_TRAINING * rates.preference_model}
    for section, values in chosen.items():
        if "learning_rate" in values and _section(raw, section).get("lora_rank"):
            values["learning_rate"] *= ADAPTERS
    return chosen


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name, {})
    return found if isinstance(found, dict) else {}


def _number(section: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number that is given, or the default; what is no number is refused when the configuration is checked."""
    found = section.get(name, default)
    return found if isinstance(found, int) else default


def rates_for(parameters: int | None) -> Rates | None:
    """Rates for a published model of so many parameters; None where those of a model from scratch fit."""
    if parameters is None:
        return UNKNOWN
    if parameters < FROM_SCRATCH_PARAMETERS:
        return None
    return next(rates for limit, rates in BY_SIZE if parameters <= limit)


def rate_said(rate: float, usual: float | None, parameters: int | None, *, adapters: bool) -> str:
    """A learning rate for a report, with what a model of this size has where a configuration gives none.

    `usual` is the rate for whole weights; None where there is none by size.
    """
    if usual is None:
        return f"{rate:g}"
    default, size = usual * (ADAPTERS if adapters else 1), _size_said(parameters)
    if math.isclose(rate, default):
        return f"{rate:g}: the default for {size}"
    return f"{rate:g}, where the default for {size} is {default:g}"


def num_parameters(folder: Path) -> int | None:
    """Parameters of a model's folder, by the headers of its weights; None where they can't be read here."""
    try:
        files = sorted(folder.glob("*.safetensors"))
        return sum(_in_header(file) for file in files) if files else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, struct.error):
        # The job that loads it says what is wrong with it.
        return None


def _in_header(file: Path) -> int:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(min(length, 100_000_000)))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _size_said(parameters: int | None) -> str:
    return (
        "a model that is not on this machine" if parameters is None else f"a model of {parameters / 1e6:.0f} M weights"
    )
