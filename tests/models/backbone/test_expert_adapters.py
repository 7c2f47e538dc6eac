"""Adapters of a mixture whose experts are parameters: the layers beside them, by default, and never the experts."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from models.backbone import adapters
from models.backbone.adapters import AdapterError, adapted_names, merged
from tests.models.sampling.tiny_models import SMALL, WIDE, with_norms

MIXTURE = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
    "first_k_dense_replace": 1, "topk_group": 1, "n_shared_experts": 1,
}  # fmt: skip


def deepseek():
    torch.manual_seed(0)
    return with_norms(DeepseekV3ForCausalLM(DeepseekV3Config(**(SMALL | WIDE | MIXTURE))).eval())


def test_by_default_attention_is_adapted_and_merges_into_the_weights():
    model = adapters.add_adapter(deepseek(), adapters.Lora(2, 4.0), seed=3)
    assert adapted_names(model) == ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"]
    with torch.no_grad():
        for _, layer in adapters.adapted_layers(model):
            layer.lora_B["default"].weight.normal_(std=0.2)
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = model(input_ids=ids).logits
        assert torch.allclose(merged(model)(input_ids=ids).logits, expected, atol=1e-4)
        assert not torch.allclose(deepseek()(input_ids=ids).logits, expected, atol=1e-2)


def test_experts_that_are_named_are_refused_before_anything_is_trained():
    with pytest.raises(AdapterError, match=r"down_proj the experts .* can't be merged .* none: kv_a_proj_with_mqa, "):
        adapters.add_adapter(deepseek(), adapters.Lora(2, 4.0, ("down_proj",)), seed=3)
