"""Writes a prompt set: what PPO answers in training, and what snapshots are judged on.

Training prompts come from the preference model's training part only; held-out prompts from its held-out dialogues, or
from a file of their own. The two never share an opening message.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from db.split import split_key
from models.preference.empty_splits import advice
from orchestrator.data.comparison_records import contents_of, records
from orchestrator.data.named_files import prompt_messages, records_of, unexpected
from orchestrator.errors import CycleError

MANIFEST_FORMAT = 1
KINDS = ("helpful", "harmless")
SPLITS = ("train", "held_out")
RECORD = '{"kind": "helpful" or "harmless", "messages": [..., {"role": "user", "content": "..."}]}'


class PromptSetManifest(TypedDict):
    """What a prompt set is published with; `manifest.json` holds the same."""

    format: int
    num_prompts: int
    num_train: int
    num_held_out: int
    counts: dict[str, dict[str, int]]
    """By split and kind."""
    repeated: int
    held_out_elsewhere: int
    """Training prompts left out because they open like a held-out one."""
    sha256: str


def build_prompt_set(
    comparisons: Path, out: Path, *, train_file: Path | None = None, held_out_file: Path | None = None
) -> PromptSetManifest:
    """Write `prompts.jsonl` and `manifest.json` from a comparison set; returns the counts.

    Each prompt stands there once per kind; the kind is the question that was asked about its replies. `train_file` adds
    prompts, `held_out_file` replaces those of the held-out dialogues.

    Raises:
        ConfigError: a file's line is no prompt.
        CycleError: no training or no held-out prompt.
    """
    writer = _Writer(out / "prompts.jsonl")
    with writer:
        if held_out_file is not None:
            for kind, messages in _read_file(held_out_file):
                writer.held_out(kind, messages, _opening_key(messages))
        for record in records(comparisons):
            if record["split"] == "train":
                writer.train(record["question"], record["prompt"], record["split_key"])
            elif held_out_file is None:
                writer.held_out(record["question"], record["prompt"], record["split_key"])
        if train_file is not None:
            for kind, messages in _read_file(train_file):
                writer.train(kind, messages, _opening_key(messages))
    counts = {split: {kind: writer.counts[split, kind] for kind in KINDS} for split in SPLITS}
    if not sum(counts["train"].values()):
        raise CycleError(
            f"The comparison set gives no training prompt ({writer.dropped['held_out_elsewhere']} of its prompts begin "
            f"like a held-out one). {advice(contents_of(comparisons))} Or name prompts in prompts.train_file."
        )
    if not sum(counts["held_out"].values()):
        raise CycleError(
            "The comparison set has no held-out dialogue to judge the policy on. "
            f"{advice(contents_of(comparisons))} Or name prompts in prompts.held_out_file."
        )
    manifest: PromptSetManifest = {
        "format": MANIFEST_FORMAT,
        "num_prompts": sum(writer.counts.values()),
        "num_train": sum(counts["train"].values()),
        "num_held_out": sum(counts["held_out"].values()),
        "counts": counts,
        "repeated": writer.dropped["repeated"],
        "held_out_elsewhere": writer.dropped["held_out_elsewhere"],
        "sha256": writer.sha256.hexdigest(),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


class _Writer:
    """Appends each prompt once, and no training prompt that opens like a held-out one seen before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[bytes] = set()
        self._held_out_keys: set[str] = set()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.dropped: Counter[str] = Counter()
        self.sha256 = hashlib.sha256()

    def __enter__(self) -> _Writer:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def train(self, kind: str, messages: list[Any], key: str) -> None:
        if key in self._held_out_keys:
            self.dropped["held_out_elsewhere"] += 1
        else:
            self._write("train", kind, messages)

    def held_out(self, kind: str, messages: list[Any], key: str) -> None:
        self._held_out_keys.add(key)
        self._write("held_out", kind, messages)

    def _write(self, split: str, kind: str, messages: list[Any]) -> None:
        canonical = json.dumps([kind, messages], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        digest = hashlib.sha256(canonical.encode())
        if digest.digest() in self._seen:
            self.dropped["repeated"] += 1
            return
        self._seen.add(digest.digest())
        record = {"id": digest.hexdigest(), "kind": kind, "split": split, "messages": messages}
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        self._file.write(line)
        self.sha256.update(line)
        self.counts[split, kind] += 1


def _read_file(file: Path) -> Iterator[tuple[str, list[Any]]]:
    """Kind and messages of each line of a prompt file.

    Raises:
        ConfigError: not there, or a line of another shape.
    """
    for where, record in records_of(file, RECORD):
        messages = prompt_messages(record, where, RECORD)
        if record.get("kind") not in KINDS:
            raise unexpected(where, f"kind is {record.get('kind')!r}", RECORD)
        yield record["kind"], messages


def _opening_key(messages: list[Any]) -> str:
    return split_key(next(message["content"] for message in messages if message["role"] == "user"))
