"""Sample replies of a report: the old policy's and the new one's to the same prompt, picked by rule and not by eye."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from models.policy.results import JudgedReply
from models.runtime.results import part_to_json
from orchestrator.people.erasure import TOMBSTONE

Old = Literal["live", "initial"]
KINDS = ("helpful", "harmless")


@dataclass(frozen=True)
class Sample:
    """A prompt with both replies; what people wrote is in it, so it is in the store alone, where an erasure comes."""

    kind: str
    old: JudgedReply
    new: JudgedReply
    old_policy: Old


def pick(old: Iterable[JudgedReply], new: Iterable[JudgedReply], old_policy: Old) -> list[Sample]:
    """Of each kind the prompt whose new reply has the median score (of an even number the lower of both)."""
    before = {reply.prompt_id: reply for reply in old}
    both = [reply for reply in new if reply.prompt_id in before and TOMBSTONE not in _said(reply, before)]
    samples = []
    for kind in sorted({reply.kind for reply in both}, key=_place):
        # Equal scores by id, so that the same replies give the same pick.
        ordered = sorted((r for r in both if r.kind == kind), key=lambda reply: (reply.score, reply.prompt_id))
        median = ordered[(len(ordered) - 1) // 2]
        samples.append(Sample(kind, before[median.prompt_id], median, old_policy))
    return samples


def sample_lines(samples: Sequence[Sample]) -> list[Mapping[str, object]]:
    """The records of samples.jsonl, by which an erasure finds texts: two of each sample, the old one first."""
    return [
        {"policy": policy} | part_to_json(reply)
        for sample in samples
        for policy, reply in ((sample.old_policy, sample.old), ("new", sample.new))
    ]


def _said(reply: JudgedReply, before: Mapping[str, JudgedReply]) -> tuple[str, str]:
    return reply.reply, before[reply.prompt_id].reply


def _place(kind: str) -> tuple[int, str]:
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)
