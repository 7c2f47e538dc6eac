"""Inputs that training and judging a policy share, checked to belong together before any time is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from models.backbone.context import context_of_folder
from models.chat.format import ChatFormat, ChatFormatError, check_same_chat
from models.policy.prompts import Prompts, PromptSetError, load_prompts
from models.policy.settings import CLOSING_IDS, TextLengths
from models.preference.model import PreferenceModel, PreferenceModelError, published
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
    folder: Path,
    chat: ChatFormat,
    split: str,
    settings: TextLengths,
    policies: Sequence[Path],
    preference_models: Sequence[Path] = (),
) -> tuple[Prompts, int]:
    """The prompts of a split that leave room for a reply in all models, and the longest prompt with its reply.

    A preference model is asked about no longer text than it was trained on. Of the models their folders are given,
    since the prompts are looked at before any is loaded.

    Raises:
        JobError: the prompt set can't be read, or nothing fits.
    """
    reply = settings.max_reply_tokens
    context = min((context_of_folder(folder) for folder in policies), default=math.inf)
    if context <= reply:
        raise JobError(
            f"max_reply_tokens is {reply}, but the policy holds {context} tokens, prompt included. Lower it."
        )
    longest_judged = [min(context_of_folder(folder), published(folder)[1]) for folder in preference_models]
    judged = min(longest_judged, default=math.inf) - CLOSING_IDS
    if judged <= reply:
        raise JobError(
            f"max_reply_tokens is {reply}, but the preference model was trained on texts of up to "
            f"{judged + CLOSING_IDS} tokens, prompt included. Lower it, or train with a higher "
            "preference_model.max_tokens."
        )
    room = min(context, judged) - reply
    longest = room if settings.max_prompt_tokens is None else min(room, settings.max_prompt_tokens)
    try:
        found = load_prompts(folder, chat, split, longest)
    except PromptSetError as error:
        raise JobError(str(error)) from error
    return found, max(len(prompt.ids) for prompt in found.prompts) + reply
