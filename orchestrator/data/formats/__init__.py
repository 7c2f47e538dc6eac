"""The formats in which comparisons come and go: which there are, and which one a file is in.

A reader is a pure function of one record (`records.Parser`). `reading` streams records out of files. The formats
are described for people in `docs/reference/formats.md`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.formats import arena, graded, hh, judged, mt_bench, own, preferences, ranked_trees
from orchestrator.data.formats.records import (
    ImportedComparison,
    Message,
    Parser,
    RawRecord,
    Refused,
    Side,
)
from orchestrator.errors import ImportFileError

__all__ = ["EXPORTS", "FORMATS", "HEAD_RECORDS", "Format", "detect", "make_parser", "reads_back"]

HEAD_RECORDS = 20
"""Records looked at to find out the format of a file."""


@dataclass(frozen=True)
class Format:
    """A format that can be read: how its records are recognised, and what parses them."""

    summary: str
    recognise: Callable[[RawRecord], bool]
    parse: Parser | None
    """None where the parser needs files beside the records."""
    needs_question: bool = False
    """Whether its public sets come with either question, so that the import must be told which."""


def _texts(record: RawRecord) -> bool:
    return isinstance(record.get("chosen"), str) and isinstance(record.get("rejected"), str)


def _sides(record: RawRecord) -> bool:
    return "chosen" in record and "rejected" in record


FORMATS: dict[str, Format] = {
    "own": Format("the product's own, all columns", lambda r: r.get("format") == own.FORMAT, own.parse),
    "hh": Format(
        "hh-rlhf: chosen and rejected are whole dialogues",
        lambda r: _texts(r) and "prompt" not in r and "conversations" not in r and r["chosen"].startswith(hh.HUMAN),
        hh.parse,
        needs_question=True,
    ),
    "preference": Format(
        "prompt, chosen and rejected, as texts or as messages",
        lambda r: (
            _sides(r)
            and "conversations" not in r
            and ("prompt" in r or (isinstance(r["chosen"], list) and isinstance(r["rejected"], list)))
        ),
        preferences.parse,
    ),
    "conversations": Format(
        "LLaMA-Factory: conversations, chosen and rejected; labelled by models",
        lambda r: _sides(r) and "conversations" in r,
        preferences.parse_conversations,
    ),
    "mt_bench": Format(
        "MT-bench verdicts, with questions.jsonl and model_answers.jsonl.gz beside them",
        lambda r: {"question_id", "model_a", "model_b", "winner"} <= r.keys() and "conversation_a" not in r,
        None,
    ),
    "arena": Format(
        "Arena votes: model_a, model_b, conversation_a, conversation_b and winner",
        lambda r: {"model_a", "model_b", "winner", "conversation_a", "conversation_b"} <= r.keys(),
        arena.parse,
    ),
    "graded": Format(
        "graded comparisons as in Tulu's human evaluation",
        lambda r: {"preference", "completion_a", "completion_b"} <= r.keys(),
        graded.parse,
    ),
    "llmbar": Format("LLMBar: input, output_1, output_2 and label", judged.is_llmbar, judged.parse_llmbar),
    "choices": Format(
        "a question with answers marked 1 or 0, as in BIG-bench's HHH", judged.is_choices, judged.parse_choices
    ),
    "ranked_trees": Format(
        "Open Assistant's ranked message trees",
        lambda r: "message_tree_id" in r and isinstance(r.get("prompt"), dict),
        ranked_trees.parse,
    ),
}
"""Every format that can be imported, by the name of `--format`."""

Render = Callable[[list[Message], Side, Side], RawRecord | None]

EXPORTS: dict[str, tuple[str, Render | None]] = {
    "own": ("the product's own, all columns", None),
    "hh": ("hh-rlhf: chosen and rejected are whole dialogues", hh.render),
    "strings": ("prompt, chosen and rejected as texts", preferences.render_strings),
    "messages": ("prompt, chosen and rejected as messages", preferences.render_messages),
}
"""Every format that can be exported, by the name of `--format`."""


def detect(record: RawRecord, where: str) -> str:
    """The name of the one format that a record is in.

    Raises:
        ImportFileError: no format fits, or several; `where` names file and line.
    """
    fits = [name for name, known in FORMATS.items() if known.recognise(record)]
    if len(fits) == 1:
        return fits[0]
    keys = ", ".join(sorted(record)[:12]) or "nothing"
    found = "no known format" if not fits else f"more than one format ({', '.join(fits)})"
    raise ImportFileError(
        f"{where}: an object with the fields {keys} fits {found}.{'' if fits else _likely_slip(record)} "
        f"Name the format with --format; known are {', '.join(FORMATS)}."
    )


# What formats are told apart by, for the one that a slip of the pen leaves out.
_FIELDS = (
    "chosen", "rejected", "conversations", "model_a", "model_b", "winner", "question_id", "conversation_a",
    "conversation_b", "completion_a", "completion_b", "preference", "output_1", "output_2", "label", "message_tree_id",
    "target_scores",
)  # fmt: skip


def _likely_slip(record: RawRecord) -> str:
    """What the reader may be told of fields that nearly bear a known name."""
    slips = []
    for key in sorted(record.keys() - set(_FIELDS)):
        known = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0.8)
        if known and known[0] not in record:
            slips.append(f"{key!r} may be {known[0]!r}")
    return f" The field {' and the field '.join(slips)}." if slips else ""


def make_parser(name: str, file: Path, questions: Path | None = None, answers: Path | None = None) -> Parser:
    """The parser of a format; `questions` and `answers` are for MT-bench alone.

    Raises:
        ImportFileError: a file that MT-bench verdicts need is missing.
    """
    parse = FORMATS[name].parse
    return mt_bench.make_parser(file, questions, answers) if parse is None else parse


def reads_back(export_format: str, record: RawRecord, prompt: list[Message], better: Side, worse: Side) -> bool:
    """Whether a rendered record is read as the same dialogue, better and worse reply."""
    parse = hh.parse if export_format == "hh" else preferences.parse
    if detect_or_none(record) != ("hh" if export_format == "hh" else "preference"):
        return False
    try:
        (back,) = parse(record)
    except Refused:
        return False
    return isinstance(back, ImportedComparison) and (
        (back.prompt, back.a.messages(), back.b.messages()) == (prompt, better.messages(), worse.messages())
    )


def detect_or_none(record: RawRecord) -> str | None:
    """The format of a record, or None where that is not clear."""
    try:
        return detect(record, "")
    except ImportFileError:
        return None
