"""Read what the evaluate job wrote. No torch: the gates and reports use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def replies(directory: Path) -> Iterator[dict[str, Any]]:
    """The records of an evaluation: prompt_id, kind, messages, reply, score, kl_nats, reply_tokens, truncated."""
    with (directory / "replies.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
