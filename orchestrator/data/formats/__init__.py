"""The formats in which comparisons come and go: which there are, and which one a file is in.

A reader is a pure function of one record (`records.Parser`). `reading` streams records out of files. The formats
are described for people in `docs/reference/formats.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.formats import arena, graded, hh, judged, mt_bench, own, preferences, ranked_trees, sides
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
SHOWN_FIELDS = 24
"""Fields of a record that an error names."""


@dataclass(frozen=True)
class Format:
    """A format that can be read: how its records are recognised, and what parses them."""

    summary: str
    needs: str
    """The fields that it is known by."""
    recognise: Callable[[RawRecord], bool]
    parse: Parser | None
    """None where the parser needs files beside the records."""
    needs_question: bool = False
    """Whether its public sets come with either question, so that the import must be told which."""


SIDES = ("chosen", "rejected")


def _texts(record: RawRecord) -> bool:
    return isinstance(record.get("chosen"), str) and isinstance(record.get("rejected"), str)


def _sides(record: RawRecord) -> bool:
    return "chosen" in record and "rejected" in record


FORMATS: dict[str, Format] = {
    "own": Format(
        "the product's own, all columns",
        "format, with the value orchestrator.comparison.1",
        lambda r: r.get("format") == own.FORMAT,
        own.parse,
    ),
    "hh": Format(
        "hh-rlhf: chosen and rejected are whole dialogues",
        "chosen, rejected",
        lambda r: _texts(r) and "prompt" not in r and "conversations" not in r and hh.opens(r["chosen"]),
        hh.parse,
        needs_question=True,
    ),
    "preference": Format(
        "prompt, chosen and rejected, as texts or as messages",
        "prompt, chosen, rejected",
        lambda r: (
            _sides(r)
            and "conversations" not in r
            and ("prompt" in r or all(isinstance(r[side], list) or sides.tells_all(r[side]) for side in SIDES))
        ),
        preferences.parse,
    ),
    "conversations": Format(
        "LLaMA-Factory: conversations, chosen and rejected; labelled by models",
        "conversations, chosen, rejected",
        lambda r: _sides(r) and "conversations" in r,
        preferences.parse_conversations,
    ),
    "mt_bench": Format(
        "MT-bench verdicts, with questions.jsonl and model_answers.jsonl.gz beside them",
        "question_id, model_a, model_b, winner",
        lambda r: {"question_id", "model_a", "model_b", "winner"} <= r.keys() and "conversation_a" not in r,
        None,
    ),
    "arena": Format(
        "Arena votes: model_a, model_b, conversation_a, conversation_b and winner",
        "model_a, model_b, conversation_a, conversation_b, winner",
        lambda r: {"model_a", "model_b", "winner", "conversation_a", "conversation_b"} <= r.keys(),
        arena.parse,
    ),
    "graded": Format(
        "graded comparisons as in Tulu's human evaluation",
        "preference, completion_a, completion_b",
        lambda r: {"preference", "completion_a", "completion_b"} <= r.keys(),
        graded.parse,
    ),
    "llmbar": Format(
        "LLMBar: input, output_1, output_2 and label",
        "input, output_1, output_2, label",
        judged.is_llmbar,
        judged.parse_llmbar,
    ),
    "choices": Format(
        "a question with answers marked 1 or 0, as in BIG-bench's HHH",
        "input, and target_scores or targets",
        judged.is_choices,
        judged.parse_choices,
    ),
    "ranked_trees": Format(
        "Open Assistant's ranked message trees",
        "message_tree_id, prompt",
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
    fields = sorted(record)
    keys = ", ".join(fields[:SHOWN_FIELDS]) + (" …" if len(fields) > SHOWN_FIELDS else "") if fields else "none"
    found = f"{where}: found an object with the fields {keys}"
    if fits:
        raise ImportFileError(f"{found}, which fits more than one format ({', '.join(fits)}). Name one with --format.")
    needs = "; ".join(f"{name}: {known.needs}" for name, known in FORMATS.items())
    raise ImportFileError(f"{found}, which fits no known format. What each needs: {needs}. Rename the fields.")


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
