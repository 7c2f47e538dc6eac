"""MT-bench verdicts: who judged which two models on which question, joined with the questions and answers.

Turn 1 judges the first answer. Turn 2 judges the whole dialogue of two turns, in which each side has its own
history: first answer, second question.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from orchestrator.data.formats.reading import RecordFile
from orchestrator.data.formats.records import (
    ImportedComparison,
    Message,
    Parser,
    RawRecord,
    Refused,
    Side,
    comparison_of,
    load_object,
    member,
)
from orchestrator.errors import ImportFileError

WINNERS: dict[str, Literal["a", "b", "none"]] = {
    "model_a": "a",
    "model_b": "b",
    "tie": "none",
    "tie (inconsistent)": "none",
    "tie (bothbad)": "none",
    "both_bad": "none",
    "both_good": "none",
    "bothbad": "none",
}
"""What verdicts are called, in lower case and with single blanks."""
QUESTION_FILES = ("questions.jsonl", "question.jsonl", "questions.jsonl.gz")
ANSWER_FILES = ("model_answers.jsonl.gz", "model_answers.jsonl", "model_answer.jsonl")


def side_of_winner(record: RawRecord) -> Literal["a", "b", "none"]:
    """The side that a verdict's `winner` names; none where neither is better.

    Raises:
        Refused: an unknown winner.
    """
    winner = member(record, "winner", str)
    side = WINNERS.get(" ".join(winner.lower().split()))
    if side is None:
        raise Refused("unknown_value", f"winner is {winner!r}; known are {', '.join(WINNERS)}")
    return side


def make_parser(file: Path, questions: Path | None = None, answers: Path | None = None) -> Parser:
    """A parser that knows the questions and answers, from the files named or found beside the verdicts.

    Raises:
        ImportFileError: no such file, or a line in it that does not hold a question or an answer.
    """
    turns = _load_questions(questions or _beside(file, QUESTION_FILES, "--questions"))
    replies = _load_answers(answers or _beside(file, ANSWER_FILES, "--answers"))

    def parse(record: RawRecord) -> Iterable[ImportedComparison | Refused]:
        question_id = member(record, "question_id", int)
        turn = member(record, "turn", int)
        side = side_of_winner(record)
        judge = member(record, "judge", str)
        if question_id not in turns:
            raise Refused("unknown_question", f"question {question_id} is not in the questions file")
        messages = turns[question_id]
        if not 1 <= turn <= len(messages):
            raise Refused("unknown_value", f"turn is {turn}; question {question_id} has turns 1 to {len(messages)}")
        sides = [
            _side(messages, replies, question_id, member(record, key, str), turn) for key in ("model_a", "model_b")
        ]
        yield comparison_of(
            [{"role": "user", "content": messages[0]}], sides[0], sides[1], side,
            reason="tie" if side == "none" else None,
            rater=judge,
            label_kind=label_kind_of(judge),
            external_id=str(question_id),
            source_value=record,
        )  # fmt: skip

    return parse


def label_kind_of(judge: str | None) -> Literal["human", "model"]:
    """Judges are named by their model (`gpt4_pair`), people as experts, authors or users."""
    return "model" if judge is not None and judge.startswith("gpt") else "human"


def _side(
    messages: list[str], replies: dict[tuple[int, str], list[str]], question_id: int, model: str, turn: int
) -> Side:
    answer = replies.get((question_id, model))
    if answer is None or len(answer) < turn:
        raise Refused("unknown_answer", f"no answer of {model!r} to question {question_id}, turn {turn}")
    history: list[Message] = []
    for index in range(turn - 1):
        history.append({"role": "assistant", "content": answer[index]})
        history.append({"role": "user", "content": messages[index + 1]})
    return Side(answer[turn - 1], history, contestant=model)


def _beside(file: Path, names: tuple[str, ...], option: str) -> Path:
    for name in names:
        if (found := file.parent / name).exists():
            return found
    raise ImportFileError(
        f"{file} holds MT-bench verdicts, and {names[0]} does not lie beside it. Give the file with {option}."
    )


def _load_questions(path: Path) -> dict[int, list[str]]:
    return {key[0]: turns for key, turns in _load(path, lambda r: (member(r, "question_id", int),), lambda r: r)}


def _load_answers(path: Path) -> dict[tuple[int, str], list[str]]:
    found = {}
    for key, turns in _load(
        path,
        lambda r: (member(r, "question_id", int), member(r, "model_id", str)),
        lambda r: member(r, "choices", list)[0],
    ):
        found[key] = turns
    return found


def _load(path: Path, key: Any, holder: Any) -> Iterable[tuple[Any, list[str]]]:
    with RecordFile(path) as file:
        for raw in file:
            try:
                record = load_object(raw.text)
                turns = member(holder(record), "turns", list)
                if not turns or not all(isinstance(turn, str) for turn in turns):
                    raise Refused("wrong_type", "turns is not a list of texts")
                yield key(record), turns
            except (Refused, IndexError) as error:
                raise ImportFileError(f"{path}, line {raw.line}: {error}. Nothing was imported.") from None
