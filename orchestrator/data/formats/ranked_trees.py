"""Open Assistant's message trees: sibling replies carry a rank, and every two ranked siblings are a comparison.

The unit of the counts is the comparison. A reply without a rank beside others, and a tree without any
comparison, are each one record in quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import combinations

from orchestrator.data.formats.preferences import ROLES
from orchestrator.data.formats.records import (
    ImportedComparison,
    Message,
    RawRecord,
    Refused,
    Side,
    comparison_of,
    member,
    optional,
)

MAX_DEPTH = 200
"""Deeper trees are no dialogues; the walk is recursive."""


def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
    """All comparisons of one tree, best sibling first; the better-ranked side is `a`."""
    tree = member(record, "message_tree_id", str)
    found = list(_walk(member(record, "prompt", dict), [], tree))
    if not found:
        raise Refused("no_comparison", f"tree {tree} ranks no two replies against each other")
    return found


def _walk(message: RawRecord, path: list[Message], tree: str) -> Iterator[ImportedComparison | Refused]:
    if len(path) > MAX_DEPTH:
        raise Refused("malformed_dialogue", f"tree {tree} is deeper than {MAX_DEPTH} messages")
    here = [*path, _message(message)]
    replies = optional(message, "replies", list) or []
    for reply in replies:
        if not isinstance(reply, dict):
            raise Refused("wrong_type", f"replies holds {type(reply).__name__}; expected messages")
    siblings = [reply for reply in replies if _message(reply)["role"] == "assistant"]
    yield from _group(siblings, here, tree)
    for reply in replies:
        yield from _walk(reply, here, tree)


def _message(message: RawRecord) -> Message:
    role = ROLES.get(member(message, "role", str))
    if role is None:
        raise Refused("unknown_value", f"role is {message['role']!r}; known are prompter and assistant")
    return {"role": role, "content": member(message, "text", str)}


def _group(siblings: list[RawRecord], prompt: list[Message], tree: str) -> Iterator[ImportedComparison | Refused]:
    """The comparisons among the replies to one message."""
    if len(siblings) < 2:
        return
    ranked = [reply for reply in siblings if optional(reply, "rank", int) is not None]
    for reply in siblings:
        if reply.get("rank") is None:
            detail = f"reply {reply.get('message_id')} of tree {tree} has no rank beside {len(siblings) - 1} others"
            yield Refused("unranked", detail, raw=_raw(tree, [reply]))
    for a, b in combinations(sorted(ranked, key=lambda reply: reply["rank"]), 2):
        raw = _raw(tree, [a, b])
        if a["rank"] == b["rank"]:
            yield Refused("equal_ranks", f"two replies of tree {tree} have rank {a['rank']}", raw=raw)
            continue
        try:
            yield comparison_of(
                prompt, _side(a), _side(b), "a",
                external_id=tree,
                source_value={"message_tree_id": tree, "a": _facts(a), "b": _facts(b)},
                raw=raw,
            )  # fmt: skip
        except Refused as refused:
            yield Refused(refused.reason, refused.detail, raw=raw)


def _side(reply: RawRecord) -> Side:
    return Side(member(reply, "text", str), contestant=optional(reply, "model_name", str))


def _facts(reply: RawRecord) -> RawRecord:
    return {key: value for key, value in reply.items() if key not in ("text", "replies", "role")}


def _raw(tree: str, replies: list[RawRecord]) -> str:
    bare = [{key: value for key, value in reply.items() if key != "replies"} for reply in replies]
    return json.dumps({"message_tree_id": tree, "replies": bare}, ensure_ascii=False)
