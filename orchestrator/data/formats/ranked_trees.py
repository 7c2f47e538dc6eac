"""Open Assistant's message trees: sibling replies carry a rank, and every two ranked siblings are a comparison.

The unit of the counts is the comparison. A reply without a rank beside others, a message that can't be read or was
deleted or turned down (with all that answers it), and a tree without any comparison, are each one record in quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

from orchestrator.data.formats.messages import content_of, role_of
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
    replies = []
    for reply in optional(message, "replies", list) or []:
        try:
            replies.append((_message(reply)["role"], reply))
        except Refused as refused:
            yield Refused(refused.reason, f"tree {tree}: {refused.detail}", raw=_raw(tree, [reply], whole=True))
    yield from _group([reply for role, reply in replies if role == "assistant"], here, tree)
    for _, reply in replies:
        yield from _walk(reply, here, tree)


def _message(message: Any) -> Message:
    """A message of the tree.

    Raises:
        Refused: it can't be read, or was deleted or turned down.
    """
    if not isinstance(message, dict):
        raise Refused("wrong_type", f"replies holds {type(message).__name__}; expected messages")
    # Flags of a column with gaps come as 1.0 and 0.0.
    flags = {name: optional(message, name, (bool, int, float)) for name in ("deleted", "review_result")}
    if flags["deleted"]:
        raise Refused("deleted", f"message {message.get('message_id')} was deleted")
    if flags["review_result"] is not None and not flags["review_result"]:
        raise Refused("deleted", f"message {message.get('message_id')} was turned down (review_result)")
    return {"role": role_of(message, "role", "a message"), "content": content_of(message, "text")}


def _group(siblings: list[RawRecord], prompt: list[Message], tree: str) -> Iterator[ImportedComparison | Refused]:
    """The comparisons among the replies to one message."""
    if len(siblings) < 2:
        return
    ranked: list[tuple[int, RawRecord]] = []
    for reply in siblings:
        try:
            if (rank := optional(reply, "rank", int)) is not None:
                ranked.append((rank, reply))
                continue
            detail = f"reply {reply.get('message_id')} of tree {tree} has no rank beside {len(siblings) - 1} others"
            yield Refused("unranked", detail, raw=_raw(tree, [reply]))
        except Refused as refused:
            yield Refused(refused.reason, f"tree {tree}: {refused.detail}", raw=_raw(tree, [reply]))
    for (high, a), (low, b) in combinations(sorted(ranked, key=lambda entry: entry[0]), 2):
        raw = _raw(tree, [a, b])
        if high == low:
            yield Refused("equal_ranks", f"two replies of tree {tree} have rank {high}", raw=raw)
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
    return Side(content_of(reply, "text"), contestant=optional(reply, "model_name", str))


def _facts(reply: RawRecord) -> RawRecord:
    return {key: value for key, value in reply.items() if key not in ("text", "replies", "role")}


def _raw(tree: str, replies: list[Any], *, whole: bool = False) -> str:
    """The part of the tree that a comparison or a refusal comes from; `whole` with what answers it."""
    bare = replies if whole else [{key: value for key, value in reply.items() if key != "replies"} for reply in replies]
    return json.dumps({"message_tree_id": tree, "replies": bare}, ensure_ascii=False)
