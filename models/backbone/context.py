"""How many tokens a model can hold, whatever its family calls that."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import AutoConfig

NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
"""Of configurations, most usual first; models of a hub folder's own code have the later ones."""


def context_of(*models: Any) -> float:
    """Tokens that each of these models can hold; infinite where none of their configurations has a limit.

    A configuration of text and pictures keeps it in its part for text.
    """
    return min((_context(model.config) for model in models), default=math.inf)


def context_of_folder(folder: Path) -> float:
    """The same of a model in a folder, without loading it."""
    return _context(AutoConfig.from_pretrained(folder))


def _context(config: Any) -> float:
    for part in (config, getattr(config, "text_config", None)):
        for name in NAMES:
            value = getattr(part, name, None)
            # Some that have no limit say so by -1 or 0.
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return math.inf
