"""What a chat completion request may hold beside what is served, because no reply is another one for it.

A list of what is harmless, and not of what is harmful: a field that nobody here has heard of may ask for another reply,
and would be passed over in silence. `schemas.py` refuses whatever is neither served nor listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Harmless:
    """What one kind of object may hold beside the fields that are read."""

    whatever: frozenset[str]
    """Fields whose value is all the same: who asks, how the reply is stored, billed, cached or delivered."""
    only: Mapping[str, tuple[Any, ...]]
    """By field the values that ask for what happens anyway."""


REQUEST = Harmless(
    frozenset(
        {
            # OpenAI's.
            "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
            "service_tier", "store", "user",
            # A guess at the reply's text, by which it comes sooner and not otherwise.
            "prediction",
            # There are no tools to call.
            "parallel_tool_calls",
            # vLLM's and llama.cpp's.
            "cache_prompt", "cache_salt", "priority", "request_id",
        }
    ),
    {
        # OpenAI's.
        "frequency_penalty": (0,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({}, []),
        "logprobs": (False,),
        "modalities": (["text"],),
        "presence_penalty": (0,),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "stop": ([], ""),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "verbosity": ("medium",),
        # What clients of vLLM, SGLang, llama.cpp, TGI and Ollama spell out at their defaults.
        "add_generation_prompt": (True,),
        "add_special_tokens": (False,),
        "bad_words": ([],),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "documents": ([],),
        "dry_multiplier": (0,),
        "dynatemp_range": (0,),
        "echo": (False,),
        "ignore_eos": (False,),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1,),
        "min_p": (0,),
        "min_tokens": (0,),
        "mirostat": (0,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "repeat_penalty": (1,),
        "repetition_penalty": (1,),
        "skip_special_tokens": (True,),
        "stop_token_ids": ([],),
        "suffix": ("",),
        "tfs_z": (1,),
        "top_a": (0,),
        "top_k": (-1, 0),
        "typical": (1,),
        "typical_p": (1,),
        "use_beam_search": (False,),
        "xtc_probability": (0,),
    },
)  # fmt: skip

STREAM_OPTIONS = Harmless(frozenset({"include_obfuscation"}), {"continuous_usage_stats": (False,)})

# What clients send back of a reply that they were given, where nothing stands in it.
MESSAGE = Harmless(
    frozenset(),
    {
        "annotations": ([],),
        "reasoning": ("",),
        "reasoning_content": ("",),
        "refusal": ("",),
        "tool_calls": ([],),
    },
)

TEXT_PART = Harmless(frozenset({"cache_control", "prompt_cache_breakpoint"}), {"annotations": ([],)})


def refusals(extra: Mapping[str, Any], harmless: Harmless) -> list[str]:
    """What of the fields beside those that are read would change a reply, field by field in words."""
    return [
        # Cut: what a client sends may be as long as a request.
        f"{name} can't be used with this server (found {repr(value)[:60]}); leave it out"
        for name, value in extra.items()
        if name not in harmless.whatever and without_nulls(value) not in harmless.only.get(name, ())
    ]


def without_nulls(value: Any) -> Any:
    """An object without the fields that are null, which stands for absent; anything else as it is."""
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value
