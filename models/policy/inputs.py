"""Inputs that training and judging a policy share, checked to belong together before any time is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.chat.format import ChatFormat, ChatFormatError, check_same_chat
from models.policy.prompts import Prompts, PromptSetError, load_prompts
from models.preference.model import PreferenceModel, PreferenceModelError
from models.runtime.job import JobError


def load_preference_model(folder: Path, initial: Path, device: torch.device) -> PreferenceModel:
    """The preference model, refused unless its tokenizer and template are the initial policy's, byte for byte.

    Raises:
        JobError: they differ, or the folder holds no preference model.
    """
    try:
        check_same_chat(folder, initial, "preference model")
        return PreferenceModel.load(folder, device)
    except (ChatFormatError, PreferenceModelError) as error:
        raise JobError(str(error)) from error


def prompts_that_fit(
    folder: Path, chat: ChatFormat, split: str, max_reply_tokens: int, *policies: Any
) -> tuple[Prompts, int]:
    """The prompts of a split that leave room for a reply in all policies, and the longest prompt with its reply.

    Raises:
        JobError: the prompt set can't be read, or nothing fits.
    """
    context = min(getattr(policy.config, "max_position_embeddings", 2**31) for policy in policies)
    if context <= max_reply_tokens:
        raise JobError(
            f"max_reply_tokens is {max_reply_tokens}, but the policy holds {context} tokens, prompt included. Lower it."
        )
    try:
        found = load_prompts(folder, chat, split, context - max_reply_tokens)
    except PromptSetError as error:
        raise JobError(str(error)) from error
    return found, max(len(prompt.ids) for prompt in found.prompts) + max_reply_tokens
