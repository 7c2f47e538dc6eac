"""Extra skills for the preference model: comparisons from files, rewritten as dialogues by a versioned template.

As the paper mixes in learning-to-summarise [59]: the human asks for a summary of the text, and the assistant replies
"Sure, here it is:" and the summary. The template's name carries its version; a change of wording is a new name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.config import SkillSection
from orchestrator.data.comparison_set import ComparisonSetResults
from orchestrator.data.formats.records import RawRecord, Refused, whole
from orchestrator.data.named_files import records_of
from orchestrator.data.pair_set import PairRecord, comparisons_in, write_pair_set
from orchestrator.data.questions import better_and_worse
from orchestrator.errors import ConfigError

Pair = tuple[list[Any], list[Any], list[Any]]
"""Prompt, better and worse continuation."""


def write_skill_set(skills: list[SkillSection], held_out_fraction: float, out: Path) -> ComparisonSetResults:
    """Write the comparisons of all skills as one comparison set, each skill a source of its own; returns its counts.

    Raises:
        ConfigError: a file that can't be read, or a record that the template does not know.
    """
    return write_pair_set((record for skill in skills for record in skill_records(skill)), held_out_fraction, out)


def skill_records(skill: SkillSection) -> Iterator[PairRecord]:
    """The records of one skill's file, its template applied."""
    file = Path(skill.file)
    read = TEMPLATES[skill.template]
    for number, (where, record) in enumerate(records_of(file, "a comparison, or a record of the template")):
        for place, (prompt, better, worse) in enumerate(read(record, where, file)):
            yield {
                "id": f"{skill.name}:{number}:{place}",
                "source": skill.name,
                "tranche": "imported",
                "question": skill.question,
                "prompt": prompt,
                "better": better,
                "worse": worse,
            }


def _as_it_is(record: RawRecord, where: str, file: Path) -> Iterator[Pair]:
    """Comparisons in any format that can be imported, as they are."""
    for item in comparisons_in(record, where, file):
        a, b = list(item.a.messages()), list(item.b.messages())
        yield (list(item.prompt), *better_and_worse(item.side, item.question, a, b))


def _summary(record: RawRecord, where: str, file: Path) -> Iterator[Pair]:
    """Two summaries of a text: {text, better, worse}, or learning-to-summarise's {info, summaries, choice}."""
    try:
        if "summaries" in record:
            text = record["info"].get("post") or record["info"]["article"]
            choice = whole(record["choice"], "choice")
            if choice not in (0, 1):
                raise ValueError(f"choice is {choice!r}")
            better, worse = record["summaries"][choice]["text"], record["summaries"][1 - choice]["text"]
        else:
            text, better, worse = record["text"], record["better"], record["worse"]
        if not all(isinstance(part, str) and part.strip() for part in (text, better, worse)):
            raise ValueError("a text is empty")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, Refused) as error:
        raise ConfigError(
            f"{where} is no pair of summaries ({type(error).__name__}: {error}); expected "
            '{"text", "better", "worse"} or {"info": {"post"}, "summaries": [{"text"}, {"text"}], "choice": 0 or 1}.'
        ) from None
    if better.strip() != worse.strip():
        prompt = [{"role": "user", "content": f"Please write a summary of this text:\n\n{text.strip()}"}]
        yield prompt, _reply(better), _reply(worse)


def _reply(summary: str) -> list[Any]:
    return [{"role": "assistant", "content": f"Sure, here it is:\n\n{summary.strip()}"}]


TEMPLATES: dict[str, Callable[[RawRecord, str, Path], Iterator[Pair]]] = {
    "as-it-is/1": _as_it_is,
    "summary/1": _summary,
}
"""By name and version, as `template` in the configuration."""
