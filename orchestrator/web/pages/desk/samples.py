"""Replies old and new beside an approval: the samples of the cycle's newest report, as they lie in the store.

They were picked by rule (`orchestrator/reports/samples.py`), and what was erased since is gone from there too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from orchestrator.store import ledger
from orchestrator.web.pages.desk.shared import Desk

FILE = "samples.jsonl"


@dataclass(frozen=True)
class Replied:
    """One policy's reply, with its score by the cycle's preference model."""

    reply: str
    score: float
    tokens: int


@dataclass(frozen=True)
class Beside:
    """A prompt, what the policy before replied to it, and what the new one did."""

    kind: str
    messages: Sequence[dict[str, str]]
    old_was_live: bool
    """False: nothing but the initial policy was live, and `old` is its reply."""
    old: Replied
    new: Replied


def samples_of(desk: Desk, session: Session, cycle_id: int) -> list[Beside]:
    """The samples of the cycle's newest report; none where there is no report, or the store does not hold it."""
    digest, store = ledger.newest_of(session, cycle_id, "report"), desk.feedback.store
    if digest is None or store is None:
        return []
    place = ledger.place_of(session, digest)
    file = store.fetch(place) / FILE if store.exists(place) else None
    if file is None or not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    # Two of each sample, the old one first.
    return [_beside(old, new) for old, new in zip(lines[::2], lines[1::2], strict=True)]


def _beside(old: dict[str, Any], new: dict[str, Any]) -> Beside:
    return Beside(new["kind"], new["messages"], old["policy"] == "live", _replied(old), _replied(new))


def _replied(line: dict[str, Any]) -> Replied:
    return Replied(line["reply"], line["score"], line["reply_tokens"])
