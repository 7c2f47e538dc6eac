"""Read what the evaluate job wrote. No torch: the gates and reports use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from models.policy.results import JudgedReply
from models.runtime.results import result_from_json


def read_replies(directory: Path) -> Iterator[JudgedReply]:
    """The replies that an evaluation judged, one per prompt, in the order of the prompts.

    Raises:
        ResultError: a line is no such record; it names the line.
    """
    path = directory / "replies.jsonl"
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield result_from_json(JudgedReply, json.loads(line), where=f"line {number} of {path}")
