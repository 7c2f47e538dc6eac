"""Tiny models that also see, with random weights."""

from __future__ import annotations

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
)

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def gemma3(**text):
    config = Gemma3Config(
        text_config=TEXT | {"sliding_window": 8} | text, vision_config={"model_type": "siglip_vision_model"} | VISION,
        image_token_index=60, boi_token_index=61, eoi_token_index=62, mm_tokens_per_image=4,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config)


def mistral3():
    config = Mistral3Config(
        text_config={"model_type": "mistral", "sliding_window": None} | TEXT,
        vision_config={"model_type": "pixtral", "head_dim": 8} | VISION, image_token_index=60,
    )  # fmt: skip
    return Mistral3ForConditionalGeneration(config)


def llava():
    config = LlavaConfig(
        text_config={"model_type": "llama"} | TEXT, vision_config={"model_type": "clip_vision_model"} | VISION,
        image_token_index=60,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)
