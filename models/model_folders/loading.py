"""Loading models from their folders, in a named number format and on a named device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_causal_lm(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A language model in evaluation mode."""
    return _placed(AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype), device)


def _placed(model: Any, device: torch.device | str) -> PreTrainedModel:
    # transformers types `to` too narrowly, hence Any.
    return model.to(device).eval()


def embedding_table(model: PreTrainedModel) -> torch.Tensor:
    """The input embeddings, (V, D); may have more rows than the tokenizer has ids."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table
