"""Whether a prepared model can be sampled, scored, trained and asked in its own format, in seconds, before any work.

What contradicts is an error that names where; what a person should only know is a doubt, a sentence that goes into the
artifact's results. Read next: `models/jobs/prepare_policy.py`.
"""

from __future__ import annotations

import copy
import json
from array import array
from collections.abc import Sequence
from typing import Any

import torch

from models.backbone.context import context_of
from models.backbone.rotary import depends_on_length
from models.backbone.trunk import states_at
from models.chat.format import ChatFormat, ChatFormatError, Message
from models.model_folders.scalar_head import scorer_class
from models.policy.critic import Critic
from models.policy.model import Policy, selected_logps
from models.policy.reply_chunks import reply_chunks
from models.policy.settings import PPOTraining
from models.preference.model import PreferenceModelError, scalar_head
from models.preference.pairs import TokenPair
from models.preference.tree_states import can_pack, states_at_reads
from models.preference.trees import pair_trees
from models.sampling.engine import Completion, DecodeEngine, SamplingParams

# Sums in another order; a model that is read wrongly is off by tenths of nats.
TOLERANCE_NATS = 5e-3
# Of states, relative to the largest.
TOLERANCE = 1e-3
SHORT, LONG = 3, 9
"""Tokens of the two replies that are compared; one goes on after the other has ended."""
REPLIES, REPLY_TOKENS = 8, PPOTraining.max_reply_tokens
"""How many replies show whether replies end, and where they are cut off, as PPO cuts them by default."""
MAX_SAMPLED_PARAMETERS = 1_000_000_000
"""On a CPU larger models are not asked whether their replies end: that would take minutes."""

_SYSTEM: Message = {"role": "system", "content": "You answer in one sentence."}
_TURNS: list[Message] = [
    {"role": "user", "content": "Hello! What is three plus four?"},
    {"role": "assistant", "content": "Three plus four is seven."},
    {"role": "user", "content": "And  five\n\nplus six?"},
]
_QUESTIONS = (
    "Name three colours.",
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "How many days has a week?",
)


class PreflightError(ValueError):
    """A prepared model would be asked, sampled or trained wrongly; says where it is seen."""


def check_format(chat: ChatFormat, tokenizer: Any) -> list[str]:
    """Compare our ids with those of `apply_chat_template`, for every role that the template takes.

    Args:
        tokenizer: the one that `chat` was written from.

    Returns:
        doubts.

    Raises:
        PreflightError: other ids; names the first two that differ.
    """
    doubts = []
    dialogues = [_TURNS[:1], _TURNS[:2], _TURNS]
    try:
        chat.encode([_SYSTEM, *_TURNS])
        dialogues.append([_SYSTEM, *_TURNS])
    except ChatFormatError:
        doubts.append(
            "Its chat template refuses a system role: dialogues that have one are left out, or need another template."
        )
    unknown = _unknown_id(tokenizer)
    compared = [_compare_ids(chat, tokenizer, unknown, messages, reply=False) for messages in dialogues]
    compared.append(_compare_ids(chat, tokenizer, unknown, _TURNS, reply=True))
    return doubts + sorted({doubt for doubt in compared if doubt is not None})


def _compare_ids(
    chat: ChatFormat, tokenizer: Any, unknown: int | None, messages: Sequence[Message], *, reply: bool
) -> str | None:
    """A doubt where our ids go on after the template's, or can't be compared; None where they are equal.

    Raises:
        PreflightError: they differ.
    """
    ours = chat.encode(messages, reply=reply)
    theirs = tokenizer.apply_chat_template(list(messages), add_generation_prompt=reply, return_dict=False)
    if unknown in theirs:
        return "Its tokenizer has no token for some characters of a plain dialogue, which are left out."
    for place, (mine, its) in enumerate(zip(ours, theirs, strict=False)):
        if mine != its:
            raise PreflightError(_differing(tokenizer, messages, place, mine, its))
    if len(ours) < len(theirs) or (len(ours) > len(theirs) and not reply):
        place = min(len(ours), len(theirs))
        ends = [ids[place] if place < len(ids) else None for ids in (ours, theirs)]
        raise PreflightError(_differing(tokenizer, messages, place, *ends))
    if len(ours) == len(theirs):
        return None
    added = tokenizer.decode(ours[len(theirs) :])
    return f"Its chat template writes {added!r} before every reply, which its generation prompt does not."


def _unknown_id(tokenizer: Any) -> int | None:
    """What stands for characters that a tokenizer does not know, whether or not it says so to transformers."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else tokenizer.convert_tokens_to_ids(token)


def _differing(tokenizer: Any, messages: Sequence[Message], place: int, mine: int | None, its: int | None) -> str:
    roles = ", ".join(message["role"] for message in messages)
    token_mine, token_its = (
        "the end" if index is None else f"id {index} ({tokenizer.convert_ids_to_tokens(index)!r})"
        for index in (mine, its)
    )
    return (
        f"A dialogue with the roles {roles} has other ids here than in apply_chat_template: at place {place} "
        f"{token_mine} stands for {token_its}. The model would be asked in a format that it never saw. Please report "
        "the tokenizer and template; a simpler template in chat_template.jinja is a way around."
    )


def check_computing(model: Any, chat: ChatFormat) -> list[str]:
    """Sample, read, value and score with a model, and compare with its plain forward.

    Returns:
        doubts.

    Raises:
        PreflightError: another number than the plain forward's, or something can't be built at all.
    """
    short, long = (chat.encode(turns, reply=True) for turns in (_TURNS[:1], _TURNS))
    room = context_of(model)
    if len(short) + LONG > room:
        return [f"Its context of {room} tokens has no room for a short dialogue, so that it was not tried."]
    prompts = [short, long if len(long) + LONG <= room else short]
    completions = _sampled(model, prompts)
    _check_reading(model, chat, completions)
    _check_scoring(model, chat)
    doubts = []
    if depends_on_length(model.config):
        doubts.append(
            "Its rotary angles depend on the length of the text: a reply that crosses the length of its first training "
            "is sampled and trained by slightly different models."
        )
    return doubts


def _sampled(model: Any, prompts: Sequence[list[int]]) -> list[Completion]:
    """Replies of unequal length from prompts of unequal length, compared with the plain forward."""
    try:
        engine = DecodeEngine(model, -1, max_slots=2)
        params = [SamplingParams(LONG, seed=0), SamplingParams(SHORT, seed=1)]
        completions = engine.generate(prompts, params)
    except Exception as error:
        raise PreflightError(f"Its replies can't be sampled here: {type(error).__name__}: {error}") from error
    for completion in completions:
        expected = _plain_logps(model, completion.prompt_ids, completion.ids)
        _compare("sampled replies", torch.tensor(completion.logprobs), expected, TOLERANCE_NATS)
    return completions


@torch.no_grad()
def _plain_logps(model: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *reply]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return selected_logps(logits, ids[0, len(prompt) :])[0].cpu()


def _check_reading(model: Any, chat: ChatFormat, completions: Sequence[Completion]) -> None:
    """What PPO reads of replies: log-probs by its own way through the layers, and values."""
    prompts, replies = zip(*((each.prompt_ids, each.ids) for each in completions), strict=True)
    shape = (len(completions), LONG)
    chunks = reply_chunks(
        prompts, replies, range(len(replies)), width=LONG, pad_id=chat.pad_id, chunk_tokens=4096, device=model.device
    )
    try:
        reading = Policy(model).read(chunks, shape, Critic("shared", model.base_model))
    except Exception as error:
        raise PreflightError(f"PPO can't read its replies: {type(error).__name__}: {error}") from error
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        _compare("replies read by PPO", reading.logps[row, : len(reply)].cpu(), _plain_logps(model, prompt, reply),
                 TOLERANCE_NATS)  # fmt: skip


@torch.no_grad()
def _check_scoring(model: Any, chat: ChatFormat) -> None:
    """What a preference model needs: a scalar head, and states of pairs with a beginning in common."""
    try:
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        with torch.device("meta"):
            scalar_head(scorer_class(config)(config))
    except (PreferenceModelError, ValueError, AttributeError) as error:
        raise PreflightError(f"A preference model can't be made from it: {error}") from error
    sides = [
        chat.score_ids([*_TURNS[:1], {"role": "assistant", "content": text}]) for text in ("Eleven.", "It is twelve.")
    ]
    shared = next(i for i, (one, other) in enumerate(zip(*sides, strict=False)) if one != other)
    prefix, better, worse = (array("i", ids) for ids in (sides[0][:shared], sides[0][shared:], sides[1][shared:]))
    pair = TokenPair("preflight", "preflight", "helpful", prefix, better, worse)
    width = max(map(len, sides))
    padded = torch.tensor([[*side, *[chat.pad_id] * (width - len(side))] for side in sides], device=model.device)
    ends = torch.tensor([row * width + len(side) - 1 for row, side in enumerate(sides)], device=model.device)
    plain = [model.base_model(input_ids=padded[row : row + 1, : len(side)], use_cache=False).last_hidden_state[0, -1]
             for row, side in enumerate(sides)]  # fmt: skip
    expected = torch.stack(plain)
    _compare("states at the end of a reply", states_at(model.base_model, padded, ends), expected, TOLERANCE)
    if can_pack(model.config):
        found = states_at_reads(model.base_model, pair_trees([pair], 4096), model.device)
        _compare("states of two replies that share a beginning", found, expected, TOLERANCE)


def _compare(what: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    apart = (found - expected).abs().max().item()
    allowed = tolerance * max(1.0, expected.abs().max().item())
    if not apart <= allowed:
        raise PreflightError(
            f"Its {what} differ from the plain forward of transformers by {apart:.3g}, where at most {allowed:.3g} "
            "come of rounding: this family would be trained wrongly here. Please report it."
        )


def check_endings(model: Any, chat: ChatFormat) -> list[str]:
    """A doubt where most replies to plain questions do not end by themselves within `REPLY_TOKENS` tokens."""
    large = sum(parameter.numel() for parameter in model.parameters()) > MAX_SAMPLED_PARAMETERS
    if large and model.device.type == "cpu":
        return []
    prompts = [chat.encode([{"role": "user", "content": text}], reply=True) for text in _QUESTIONS]
    tokens = int(min(REPLY_TOKENS, context_of(model) - max(map(len, prompts))))
    if tokens < 1:
        return []
    copies = prompts * (REPLIES // len(prompts))
    params = [SamplingParams(tokens, seed=seed) for seed in range(len(copies))]
    completions = DecodeEngine(model, chat.stop_ids, max_slots=len(copies)).generate(copies, params)
    cut = sum(completion.finished == "length" for completion in completions)
    if 2 * cut <= len(completions):
        return []
    return [
        f"{cut} of {len(completions)} of its replies to plain questions do not end by themselves within {tokens} "
        f"tokens: at max_reply_tokens = {tokens} PPO would see them cut off, and learn nothing about ending. Raise "
        "ppo.max_reply_tokens, set a ppo.cut_off_penalty, fine-tune the model on dialogues first, or give it the "
        "template that it was trained with."
    ]
