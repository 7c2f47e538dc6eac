"""The language model inside one that also sees or hears: what is trained and served here reads and writes text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

# The same operations in another order of layers' calls; another model is off by whole nats.
_TOLERANCE_NATS = 1e-3


class NoTextPartError(ValueError):
    """A model of several parts has no language model that stands by itself."""


def text_config(config: Any) -> Any:
    """The configuration of a model's language part; the configuration itself where that is all it is."""
    return config.get_text_config(decoder=True)


def is_composite(config: Any) -> bool:
    """Whether a model has other parts beside its language model."""
    return text_config(config) is not config


def load_text_part(folder: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The language model of a folder that holds a model of several parts, in evaluation mode.

    Raises:
        NoTextPartError: there is none, or by itself it is another function of its ids.
    """
    kinds = (
        (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
        (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    )
    config = AutoConfig.from_pretrained(folder)
    auto = next((auto for mapping, auto in kinds if type(config) in mapping), None)
    if auto is None:
        raise NoTextPartError(f"transformers loads no model of the type '{config.model_type}' that writes text.")
    return text_part(auto.from_pretrained(folder, dtype=dtype).eval())


def text_part(model: Any) -> PreTrainedModel:
    """The language model of a model of several parts, with its weights, checked against the whole.

    Raises:
        NoTextPartError: there is none, or by itself it is another function of its ids.
    """
    config = text_config(model.config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise NoTextPartError(f"transformers has no language model of the type '{config.model_type}' by itself.")
    alone: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device).eval()
    trunk = next((part for part in model.modules() if type(part) is type(alone.base_model)), None)
    if trunk is None:
        raise NoTextPartError(f"{type(model).__name__} holds no {type(alone.base_model).__name__}.")
    alone.base_model.load_state_dict(trunk.state_dict())
    alone.get_output_embeddings().load_state_dict(model.get_output_embeddings().state_dict())
    _check_same(model, alone)
    return alone  # type: ignore[no-any-return]


@torch.no_grad()
def _check_same(whole: Any, alone: Any) -> None:
    ids = torch.arange(8, device=whole.device)[None] + 8
    logps = [torch.log_softmax(model(input_ids=ids).logits.float(), dim=-1) for model in (whole, alone)]
    apart = (logps[0] - logps[1]).abs().max().item()
    if not apart <= _TOLERANCE_NATS:
        raise NoTextPartError(
            f"The language model of {type(whole).__name__} says something else by itself than within the whole: "
            f"log-probs differ by {apart:.3g} nats on a few ids, where at most {_TOLERANCE_NATS:g} come of rounding."
        )
