"""Reads a comparison-set directory: checks it against its manifest, streams records, tokenises pairs.

A comparison set is `manifest.json` and `shards/*.jsonl`, one comparison per line, already oriented:
`better` is better for the question asked. Read next: `models/chat/format.py`, which turns messages into ids.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict, cast

from models.chat.format import Message, TemplateRefusal
from models.chat.refusals import Refusals
from models.preference.pairs import TokenPair, TokenPairs

MANIFEST_FORMAT = 1
SPLITS = ("train", "held_out")
HASH_BLOCK_BYTES = 1 << 20
REQUIRED_KEYS = ("id", "split", "source", "question", "prompt", "better", "worse")


class ComparisonSetError(ValueError):
    """The comparison set on disk is not what its manifest says, or holds a record of the wrong shape."""


class ComparisonRecord(TypedDict):
    """A comparison of a set, one line of its shards: two replies to a prompt, `better` for the question asked.

    Replies are the messages after the prompt. Keys that need not be there are of comparisons that know them.
    """

    id: str
    split: Literal["train", "held_out"]
    source: str
    question: str
    prompt: list[Message]
    better: list[Message]
    worse: list[Message]
    split_key: NotRequired[str | None]
    """Digest of the dialogue, by which it is held out or shared between twins; none where the text was erased."""
    strength: NotRequired[int | None]
    rater: NotRequired[str | None]
    tranche: NotRequired[str | None]
    turn: NotRequired[int | None]
    tie: NotRequired[str | None]
    """What the rater said where neither was chosen; the sides are then in no order."""


class DialogueEncoder(Protocol):
    """What tokenising needs of `models.chat.format.ChatFormat`."""

    def score_ids(self, messages: Any) -> list[int]: ...


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a comparison set, with every shard's length and SHA-256 checked.

    The shards are read once here for their digest and a second time for their
    records, so that no record of a damaged shard is ever used.

    Raises:
        ComparisonSetError: no readable manifest, an unknown format, or a missing or tampered shard.
    """
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ComparisonSetError(
            f"{directory} has no manifest.json; expected a comparison set. Freeze one first."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ComparisonSetError(f"{path} is not JSON ({error}); restore the comparison set.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ComparisonSetError(
            f"{path} has format {found!r}, expected {MANIFEST_FORMAT}; it was written by another version."
        )
    for shard in manifest["shards"]:
        _verify_shard(shard_path(directory, shard), shard)
    return manifest


def shard_path(directory: Path, shard: Mapping[str, Any]) -> Path:
    """Where a shard lies: the manifest names it with or without the `shards/` before it."""
    name = Path(shard["file"])
    return directory / name if (directory / name).exists() else directory / "shards" / name


def _verify_shard(path: Path, shard: Mapping[str, Any]) -> None:
    digest, num_records = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
                num_records += block.count(b"\n")
    except FileNotFoundError:
        raise ComparisonSetError(
            f"Shard {path} is missing; the manifest lists it. Restore the comparison set."
        ) from None
    expected = str(shard["sha256"]).removeprefix("sha256:")
    if digest.hexdigest() != expected:
        raise ComparisonSetError(
            f"Shard {path} has SHA-256 {digest.hexdigest()[:12]}…, the manifest says {expected[:12]}…. "
            "Restore it from backup; do not edit comparison sets in place."
        )
    if num_records != shard["records"]:
        raise ComparisonSetError(f"Shard {path} has {num_records} records, the manifest says {shard['records']}.")


def stream_records(directory: Path, manifest: Mapping[str, Any]) -> Iterator[ComparisonRecord]:
    """Every record in the order of the manifest, one in memory at a time.

    Raises:
        ComparisonSetError: a line that is not a record, named by file and line.
    """
    for shard in manifest["shards"]:
        path = shard_path(directory, shard)
        yield from stream_lines(path)


def stream_lines(path: Path) -> Iterator[ComparisonRecord]:
    """The comparison records of one JSONL file, each checked for its keys and its message lists."""
    with path.open("r", encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ComparisonSetError(f"{path}, line {number}: not JSON ({error}).") from None
            yield _checked(record, f"{path}, line {number}")


def _checked(record: Any, where: str) -> ComparisonRecord:
    if not isinstance(record, dict):
        raise ComparisonSetError(f"{where}: {type(record).__name__}, expected a comparison record.")
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise ComparisonSetError(f"{where}: record without {', '.join(missing)}.")
    if record["split"] not in SPLITS:
        raise ComparisonSetError(f"{where}: split {record['split']!r}, expected train or held_out.")
    for side in ("better", "worse"):
        if not record[side] or record[side][-1]["role"] != "assistant":
            raise ComparisonSetError(f"{where}: {side} must end with the assistant message that was judged.")
    return cast(ComparisonRecord, record)


def token_pair(record: ComparisonRecord, chat: DialogueEncoder) -> TokenPair:
    """Tokenise both sides of a record and factor out what they have in common at the beginning.

    The shared part is found in the ids, not in the messages: both sides are
    encoded whole, so the ids are exactly those that `ChatFormat.score_ids` gives
    at scoring time. The end-of-context id is never part of the prefix.
    """
    prompt = record["prompt"]
    better = chat.score_ids([*prompt, *record["better"]])
    worse = chat.score_ids([*prompt, *record["worse"]])
    shared = common_prefix_length(better[:-1], worse[:-1])
    return TokenPair(
        id=record["id"],
        source=record["source"],
        question=record["question"],
        prefix_ids=array("i", better[:shared]),
        better_ids=array("i", better[shared:]),
        worse_ids=array("i", worse[shared:]),
        rater=record.get("rater"),
        tranche=record.get("tranche"),
        turn=record.get("turn"),
        dialogue=dialogue_number(record.get("split_key")),
        strength=record.get("strength"),
        tie=record.get("tie"),
    )


def pair_or_refusal(record: ComparisonRecord, chat: DialogueEncoder, refusals: Refusals) -> TokenPair | None:
    """The pair of a record, or None where the chat template refuses it, which is counted."""
    try:
        return token_pair(record, chat)
    except TemplateRefusal as refusal:
        refusals.add(refusal.reason)
        return None


def dialogue_number(split_key: str | None) -> int | None:
    """A number of 62 bits for a dialogue's split key (a digest in hex; an erased record has none)."""
    return int.from_bytes(hashlib.sha256(split_key.encode()).digest()[:8], "big") >> 2 if split_key else None


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids two sequences of the same type share."""
    shared, most = 0, min(len(a), len(b))
    # Halves of what is left are compared as wholes, which is faster than id by id.
    while shared < most:
        middle = (shared + most + 1) // 2
        if a[shared:middle] == b[shared:middle]:
            shared = middle
        else:
            most = middle - 1
    return shared


def load_token_pairs(
    directory: Path,
    chat: DialogueEncoder,
    max_tokens: int,
    wanted: Callable[[ComparisonRecord], bool] | None = None,
    splits: dict[str, TokenPairs] | None = None,
) -> dict[str, TokenPairs]:
    """Verify a comparison set and tokenise it, by split; only the records that are `wanted`, where that is given.

    A pair is left out, and counted, when the chat template refuses a side, or when one has
    more than `max_tokens` tokens: cutting it would let the preference model judge replies it
    was never shown whole. Ids take four bytes each, no text is held. With `splits` the pairs
    are added to those, which may keep them on disk.

    Raises:
        ComparisonSetError: see `read_manifest` and `stream_records`.
    """
    manifest = read_manifest(directory)
    splits = splits if splits is not None else {split: TokenPairs() for split in SPLITS}
    for record in stream_records(directory, manifest):
        if wanted is not None and not wanted(record):
            continue
        split = splits[record["split"]]
        if (pair := pair_or_refusal(record, chat, split.refusals)) is None:
            continue
        if max(pair.better_tokens, pair.worse_tokens) > max_tokens:
            split.num_too_long += 1
        else:
            split.pairs.append(pair)
    return splits
