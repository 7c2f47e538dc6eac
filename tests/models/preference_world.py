"""A comparison set whose truth is known: of two replies the one that says "thank you" is better.

Reply length carries no information: filler words are drawn alike for both sides.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

FILLER = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "Paris", "France", "numbers"]


def comparison(number: int, split: str, generator: random.Random, question: str = "helpful") -> dict[str, Any]:
    """One comparison record; `number` names it."""

    def words() -> list[str]:
        return [generator.choice(FILLER) for _ in range(generator.randint(2, 6))]

    polite = words()
    polite.insert(generator.randint(0, len(polite)), "thank you")
    return {
        "id": f"c{number:04}",
        "split": split,
        "source": "world",
        "tranche": "base",
        "question": question,
        "strength": None,
        "rater": "r1",
        "turn": 1,
        "prompt": [{"role": "user", "content": "Please tell me " + " ".join(words())}],
        "better": [{"role": "assistant", "content": " ".join(polite)}],
        "worse": [{"role": "assistant", "content": " ".join([*words(), generator.choice(FILLER)])}],
    }


def write_comparison_set(directory: Path, records: list[dict[str, Any]]) -> Path:
    """A comparison-set directory with one shard, as the freeze writes it."""
    (directory / "shards").mkdir(parents=True)
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    name = "shards/00000.jsonl"
    (directory / name).write_bytes(data)
    splits = [record["split"] for record in records]
    manifest = {
        "format": 1,
        "num_comparisons": len(records),
        "num_train": splits.count("train"),
        "num_held_out": splits.count("held_out"),
        "shards": [{"file": name, "sha256": hashlib.sha256(data).hexdigest(), "records": len(records)}],
        "excluded": {},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def polite_comparisons(num_train: int, num_held_out: int, seed: int = 0) -> list[dict[str, Any]]:
    """Training and held-out comparisons of the polite world."""
    generator = random.Random(seed)
    splits = ["train"] * num_train + ["held_out"] * num_held_out
    return [comparison(number, split, generator) for number, split in enumerate(splits)]
