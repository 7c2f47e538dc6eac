"""How many tokens a model can hold, by whatever its configuration calls that."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from transformers import GPT2Config, LlamaConfig

from models.backbone.context import context_of


def model(config: object) -> SimpleNamespace:
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (GPT2Config(n_positions=78), 78),
        (SimpleNamespace(max_seq_len=79), 79),  # MPT's own code
        (SimpleNamespace(seq_length=80), 80),  # ChatGLM's own code
        (SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=81)), 81),  # text and pictures
        (SimpleNamespace(max_position_embeddings=None), math.inf),
        (SimpleNamespace(max_position_embeddings=-1), math.inf),
        (SimpleNamespace(), math.inf),
    ],
)
def test_the_limit_is_found_by_each_name(config, expected):
    assert context_of(model(config)) == expected


def test_several_models_hold_what_the_smallest_does():
    assert context_of(model(LlamaConfig(max_position_embeddings=77)), model(GPT2Config(n_positions=78))) == 77
    assert context_of() == math.inf
