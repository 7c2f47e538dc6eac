"""From a trunk's final states to logits, exactly as the whole model goes: some families scale or cap them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_FACTORS = ("logit_scale", "lm_head_multiplier")
"""What logits are multiplied with: Cohere; Falcon-H1."""
_DIVISORS = ("logits_scaling",)
"""What logits are divided by: Granite."""
_CAP = "final_logit_softcapping"
"""What logits stay below: Gemma."""


class OutputLayer(nn.Module):
    """A model's output embedding with what its family does to the logits after it."""

    def __init__(self, head: nn.Module, config: Any) -> None:
        """`config` is that of the model's text part."""
        super().__init__()
        self.head = head
        self._factors = [value for name in _FACTORS if (value := getattr(config, name, None)) is not None]
        self._divisors = [value for name in _DIVISORS if (value := getattr(config, name, None)) is not None]
        self._cap = getattr(config, _CAP, None)

    def forward(self, states: Tensor) -> Tensor:
        """States (..., D) to logits (..., V)."""
        logits: Tensor = self.head(states)
        for factor in self._factors:
            logits = logits * factor
        for divisor in self._divisors:
            logits = logits / divisor
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap


class OutputLayerUnknown(ValueError):
    """A model computes its logits in a way that is not known here; says what that stops."""


def logits_of(model: Any, states: Tensor) -> Tensor:
    """Logits (N, V) of chosen places alone, from their states (N, D); only after `check_output_layer`.

    A large vocabulary times every place of a batch would not fit in memory.
    """
    logits: Tensor = OutputLayer(model.get_output_embeddings(), model.config.get_text_config())(states)
    return logits


def check_output_layer(model: Any, purpose: str) -> OutputLayer:
    """The output layer of a model, for what can't do without; `purpose` begins the sentence of the error.

    Raises:
        OutputLayerUnknown: its way from states to logits is not known.
    """
    layer = output_layer(model)
    if layer is None:
        raise OutputLayerUnknown(
            f"{purpose} needs the logits of {type(model).__name__} from its hidden states, and this family does more "
            "with them than is known here."
        )
    return layer


@torch.no_grad()
def output_layer(model: Any) -> OutputLayer | None:
    """The layer of a causal language model; None where it computes its logits in a way that is not known here.

    Known is what gives the same digits as the whole model on a few ids.
    """
    head = model.get_output_embeddings()
    if head is None:
        return None
    layer = OutputLayer(head, model.config.get_text_config())
    probe = torch.arange(4, device=model.device)[None]
    states = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
    expected = model(input_ids=probe, use_cache=False).logits
    found = layer(states)
    return layer if found.shape == expected.shape and torch.equal(found, expected) else None
