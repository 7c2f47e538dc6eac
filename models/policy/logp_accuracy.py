"""Mean log-p accuracy: does the policy find the replies likelier that people preferred? A monitor that needs nobody.

The share of held-out comparisons where the policy's mean log-prob per reply token is higher on the better reply
[76 of the paper's reading]. It stays below the preference model's accuracy on the same pairs, which is its ceiling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch

from models.backbone.batches import chunk_cost_of
from models.backbone.precision import filling
from models.chat.format import ChatFormat, Message
from models.chat.refusals import Refusals
from models.policy.model import Policy
from models.policy.prompts import KINDS
from models.policy.reply_chunks import reply_chunks
from models.preference.comparison_set import ComparisonRecord, pair_or_refusal, read_manifest, stream_records
from models.preference.curves import accuracy_of
from models.preference.loss import ordered_rightly
from models.preference.model import PreferenceModel
from models.preference.pairs import TokenPair
from models.preference.results import Accuracy

# Read for every pair that is wanted, since some are too long for the policy.
CANDIDATES_PER_PAIR = 4


@dataclass(frozen=True)
class HeldOutPair:
    """A held-out comparison as a policy reads it; each reply ends with its end-of-turn id.

    The sides may have histories of their own (an edited reply does), so that each has its prompt.
    """

    question: str
    better_prompt: list[int]
    better: list[int]
    worse_prompt: list[int]
    worse: list[int]
    scored: TokenPair  # the same pair as the preference model reads it


def held_out_pairs(
    folder: Path, chat: ChatFormat, per_question: int, max_tokens: float, refusals: Refusals
) -> list[HeldOutPair]:
    """A fixed sample of a comparison set's held-out comparisons: up to so many of each question.

    They are picked by a hash of their ids, so that the sample does not depend on the order of the shards. Pairs
    with a side of more than `max_tokens` tokens are passed over, those that the chat template refuses counted.

    Raises:
        ComparisonSetError: the folder is no comparison set, or a shard is damaged.
    """
    picked: list[HeldOutPair] = []
    for kind, records in _candidates(folder, CANDIDATES_PER_PAIR * per_question).items():
        mine: list[HeldOutPair] = []
        for record in records:
            if len(mine) == per_question:
                break
            scored = pair_or_refusal(record, chat, refusals)
            if scored is None:
                continue
            better_prompt, better = _side(record["prompt"], record["better"], chat)
            worse_prompt, worse = _side(record["prompt"], record["worse"], chat)
            longest = max(len(better_prompt) + len(better), len(worse_prompt) + len(worse))
            if longest < max_tokens:
                mine.append(HeldOutPair(kind, better_prompt, better, worse_prompt, worse, scored))
        picked += mine
    return picked


def _candidates(folder: Path, count: int) -> dict[str, list[ComparisonRecord]]:
    """Of each question the `count` held-out records with the lowest hashes, in one pass and little memory."""
    kept: dict[str, list[tuple[bytes, ComparisonRecord]]] = {kind: [] for kind in KINDS}
    for record in stream_records(folder, read_manifest(folder)):
        mine = kept.get(record["question"])
        # In a tie the sides stand in no order.
        if record["split"] != "held_out" or mine is None or record.get("tie"):
            continue
        mine.append((hashlib.sha256(f"logp/{record['id']}".encode()).digest(), record))
        if len(mine) > 2 * count:
            mine.sort(key=itemgetter(0))
            del mine[count:]
    return {kind: [record for _, record in sorted(mine, key=itemgetter(0))[:count]] for kind, mine in kept.items()}


def _side(prompt: list[Message], side: list[Message], chat: ChatFormat) -> tuple[list[int], list[int]]:
    *history, reply = side
    return chat.encode([*prompt, *history], reply=True), chat.encode_reply(reply["content"])


def mean_logp_gaps(policy: Policy, pairs: Sequence[HeldOutPair], pad_id: int, chunk_tokens: int) -> list[float]:
    """Mean log-prob per token of each better reply minus that of its worse one, in nats per token."""
    prompts = [pair.better_prompt for pair in pairs] + [pair.worse_prompt for pair in pairs]
    replies = [pair.better for pair in pairs] + [pair.worse for pair in pairs]
    width = max(map(len, replies))
    chunks = reply_chunks(
        prompts,
        replies,
        range(len(replies)),
        width=width,
        pad_id=pad_id,
        chunk_tokens=chunk_tokens,
        device=policy.model.device,
        fill=filling("float32", policy.model.device),
        chunk_cost=chunk_cost_of(policy.model),
    )
    sums = policy.read(chunks, (len(replies), width)).logps.sum(dim=1)
    means = sums / torch.tensor([len(reply) for reply in replies], device=sums.device)
    return (means[: len(pairs)] - means[len(pairs) :]).tolist()


def score_gaps(preference_model: PreferenceModel, pairs: Sequence[HeldOutPair]) -> list[float]:
    """Score of each better reply minus that of its worse one."""
    better, worse = preference_model.score_pairs([pair.scored for pair in pairs])
    return [a - b for a, b in zip(better, worse, strict=True)]


def accuracy_by_question(pairs: Sequence[HeldOutPair], gaps: Sequence[float]) -> dict[str, Accuracy]:
    """`accuracy_of` of the gaps for each question that has pairs: a gap above 0 is right, one of 0 counts half."""
    found: dict[str, Accuracy] = {}
    for kind in KINDS:
        mine = [(gap, pair.scored.dialogue) for pair, gap in zip(pairs, gaps, strict=True) if pair.question == kind]
        if mine:
            found[kind] = accuracy_of(ordered_rightly(gap for gap, _ in mine), [dialogue for _, dialogue in mine])
    return found
