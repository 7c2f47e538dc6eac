"""From states to logits: what each family's own forward gives, scaled and capped."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
)

from models.backbone.output_layer import OutputLayerUnknown, check_output_layer, logits_of, output_layer
from models.policy.model import Policy
from models.policy.reply_chunks import reply_chunks
from tests.models.sampling.tiny_models import SMALL, WIDE, cohere, gemma3, gpt2, granite, llama, with_norms

KEYS = {"num_key_value_heads": 2}


def made(model_class, config):
    torch.manual_seed(0)
    return with_norms(model_class(config).eval())


FAMILIES = {
    "llama": llama,
    "gpt2": gpt2,
    "gemma 2, capped": lambda: made(
        Gemma2ForCausalLM,
        Gemma2Config(**(SMALL | WIDE | KEYS), head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0),
    ),
    "gemma 3, capped": lambda: gemma3(final_logit_softcapping=1.5),
    "cohere, scaled": lambda: cohere(logit_scale=0.25),
    "granite, scaled": lambda: granite(logits_scaling=3.0),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_models_own_forward(name):
    model = FAMILIES[name]()
    ids = torch.randint(2, 64, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.equal(logits_of(model, states), expected)
        bare = model.get_output_embeddings()(states)
    assert torch.equal(bare, expected) == (name in ("llama", "gpt2"))
    assert output_layer(model) is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_policy_computes_logits_at_the_places_of_replies_alone_in_every_family(name):
    model = FAMILIES[name]()
    prompts, replies = [[5, 6, 7], [9, 10]], [[8, 9], [3, 4, 5]]
    [chunk] = reply_chunks(prompts, replies, [0, 1], width=3, pad_id=0, chunk_tokens=64)
    with torch.no_grad():
        found = Policy(model).states_and_logits(chunk)[1]
        expected = model(input_ids=chunk.ids).logits.flatten(0, 1)[chunk.positions]
        assert (found - expected).abs().max() <= 1e-5
        # None where the whole vocabulary would be computed at every place.
        assert Policy(model)._head is not None


def test_a_family_that_does_more_is_told_apart(monkeypatch):
    model = llama()
    forward = model.forward

    def shifted(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits + 0.5
        return output

    monkeypatch.setattr(model, "forward", shifted)
    assert output_layer(model) is None
    with pytest.raises(OutputLayerUnknown, match=r"^Distillation needs the logits of LlamaForCausalLM"):
        check_output_layer(model, "Distillation")
