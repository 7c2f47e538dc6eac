"""Tiny decoders of every architecture with random weights, prompts for them, and the plain forward as the measure."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FORWARD_TOLERANCE = 1e-4  # float32, sums in another order
VOCAB = 64
EOS = 1
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {"initializer_range": 0.3, "max_position_embeddings": 64, "intermediate_size": 64}  # peaked, varied logits


def with_norms(model):
    """Norm weights start at one, which would hide that they are left out."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def llama(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(**(SMALL | WIDE | {"num_key_value_heads": 2} | changes))
    return with_norms(LlamaForCausalLM(config).eval())


def qwen2(**changes):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**(SMALL | WIDE | {"num_key_value_heads": 2} | changes))).eval()
    with torch.no_grad():  # biases start at zero, which would hide that they are left out
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.bias.normal_()
    return with_norms(model)


def mistral(**changes):
    torch.manual_seed(0)
    config = MistralConfig(**(SMALL | WIDE | {"num_key_value_heads": 2, "sliding_window": None} | changes))
    return with_norms(MistralForCausalLM(config).eval())


def qwen3(**changes):
    """With norms of the heads of queries and keys."""
    torch.manual_seed(0)
    config = Qwen3Config(**(SMALL | WIDE | {"num_key_value_heads": 2, "head_dim": 8} | changes))
    return with_norms(Qwen3ForCausalLM(config).eval())


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def neox():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**(SMALL | WIDE))).eval()


def cohere(**changes):
    """Logits are scaled, and transformers has no class with a score."""
    torch.manual_seed(0)
    config = CohereConfig(**(SMALL | WIDE | {"num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": 0} | changes))
    return with_norms(CohereForCausalLM(config).eval())


def granite(**changes):
    """As Cohere, but that logits are divided."""
    torch.manual_seed(0)
    config = GraniteConfig(**(SMALL | WIDE | {"num_key_value_heads": 2} | changes))
    return with_norms(GraniteForCausalLM(config).eval())


def phi3_long():
    """Angles of one kind up to 8 tokens and of another beyond."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    return llama(
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8}
        | factors
    )


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAST = {
    "llama": llama,
    "llama without groups": lambda: llama(num_key_value_heads=4),
    "llama, one key-value head, wide heads": lambda: llama(num_key_value_heads=1, head_dim=16),
    "llama, biases everywhere, tied head": lambda: llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama 3 rotary scaling": lambda: llama(rope_parameters=LLAMA3_ROPE),
    "qwen2": qwen2,
    "qwen2, tied head": lambda: qwen2(tie_word_embeddings=True),
    "mistral": mistral,
    "qwen3": qwen3,
    "qwen3, wide heads, tied head": lambda: qwen3(head_dim=16, tie_word_embeddings=True),
}


def gemma3(**changes):
    """Layers with a window of 8 tokens and layers without."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **(SMALL | WIDE | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8})
        | {"layer_types": ["sliding_attention", "full_attention"], "attn_implementation": "eager"}
        | changes
    )
    return with_norms(Gemma3ForCausalLM(config).eval())


def qwen3_5():
    """A hybrid: one layer of linear attention with states in place of keys, one of attention."""
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        **(SMALL | WIDE | {"num_key_value_heads": 2, "head_dim": 8}),
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    return with_norms(Qwen3_5ForCausalLM(config).eval())


def lfm2():
    """A hybrid of short convolutions and attention."""
    torch.manual_seed(0)
    config = Lfm2Config(**(SMALL | WIDE | {"num_key_value_heads": 2}), layer_types=["conv", "full_attention"])
    return with_norms(Lfm2ForCausalLM(config).eval())


GENERIC = {
    "gpt2": gpt2,
    "gpt-neox": neox,
    "gemma 3": gemma3,
    "qwen 3.5": qwen3_5,
    "lfm 2": lfm2,
    "qwen2 with a sliding window": lambda: qwen2(
        use_sliding_window=True, sliding_window=8, max_window_layers=0, attn_implementation="eager"
    ),
    "mistral with a sliding window": lambda: mistral(sliding_window=8, attn_implementation="eager"),
    "qwen3 with a sliding window": lambda: qwen3(
        use_sliding_window=True, sliding_window=8, max_window_layers=1, attn_implementation="eager"
    ),
    "llama with dynamic rotary scaling": lambda: llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
}


def some_prompts(count=8):
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 9, 4, 12, 7, 7, 20, 5, 1, 16][:count]
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def plain_logps(model, prompt, ids):
    """Log-probs of a reply by the model's own forward over the whole text."""
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([prompt + ids])).logits[0].float(), dim=-1)
    return [logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)]


def assert_equal_to_plain_forward(model, completions):
    for completion in completions:
        expected = plain_logps(model, completion.prompt_ids, completion.ids)
        assert completion.logprobs == pytest.approx(expected, abs=FORWARD_TOLERANCE)
