"""Context distillation of the initial policy: the prompt, the teacher's distillation set, the student trained on it.

The jobs are `models/jobs/make_distillation_set.py` and `models/jobs/distill_student.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from orchestrator.config import DistillSection, InitialPolicySection
from orchestrator.data.freeze import file_digest
from orchestrator.errors import ConfigError
from orchestrator.stages.context import StageContext, build, run_job_stage

PROMPT = Path(__file__).resolve().parent / "data" / "prompts" / "hhh-1.md"
"""The prompt of the project. Another wording is another file with another number, so that a version means one text."""

_TURN = re.compile(r"^(Human|Assistant):[ \t]*", re.MULTILINE)
_BREAK = re.compile(r"^---[ \t]*$", re.MULTILINE)
_ROLES = {"Human": "user", "Assistant": "assistant"}


def distilled(context: StageContext, section: InitialPolicySection, student_id: int, *, fresh: bool) -> int:
    """Train the prepared student on what the teacher says after the prompt. Returns the initial policy's artifact."""
    from orchestrator.stages import initial_policy

    distill = section.distill
    assert distill is not None
    if distill.teacher is None:
        teacher_id = student_id
    else:
        source = InitialPolicySection(path=distill.teacher, revision=distill.teacher_revision)
        teacher_id = initial_policy.from_hugging_face(context, source, fresh=fresh)
    file = Path(distill.prompt_file) if distill.prompt_file is not None else PROMPT
    prompt_id = build(
        context,
        "distillation_prompt",
        {"file": file_digest(file), "name": file.stem},
        {},
        lambda out: write_prompt(file, out),
        fresh=fresh,
    )
    files = [Path(name) for name in distill.files]
    text_id = build(
        context,
        "text",
        {"files": [file_digest(name) for name in files]},
        {},
        lambda out: initial_policy.write_text(files, out),
        fresh=fresh,
    )
    set_id = run_job_stage(
        context,
        kind="distillation_set",
        job="make_distillation_set",
        inputs={"teacher": teacher_id, "prompt": prompt_id, "text": text_id},
        settings=distill.model_dump(include={"tokens", "max_tokens", "held_out_texts", "threads"}),
        fresh=fresh,
    )
    return run_job_stage(
        context,
        kind="initial_policy",
        job="distill_student",
        inputs={"student": student_id, "distillation_set": set_id},
        settings=distill.model_dump(include={"learning_rate_multiple", "batch_texts", "epochs", "precision", "threads"})
        | {"reference_learning_rate": _reference_rate(section, distill)},
        fresh=fresh,
    )


def _reference_rate(section: InitialPolicySection, distill: DistillSection) -> float:
    """The learning rate that multiples are of: the model's own in pretraining. The configuration has one of the two."""
    if distill.reference_learning_rate is not None:
        return distill.reference_learning_rate
    assert section.pretrain is not None
    return section.pretrain.learning_rate


def parse_prompt(text: str) -> list[dict[str, str]]:
    """The messages of a prompt: what stands before the first `Human:` is a system message, the examples are turns.

    Lines of three dashes part the examples. Lines of a paragraph are joined, so that a file may be wrapped.

    Raises:
        ConfigError: an example that does not begin with the human or does not end with the assistant; an empty prompt.
    """
    messages: list[dict[str, str]] = []
    for number, part in enumerate(_BREAK.split(text)):
        turns = list(_TURN.finditer(part))
        before = _unwrapped(part[: turns[0].start()] if turns else part)
        if before and number > 0:
            raise ConfigError(f"Example {number} of the prompt begins with {before[:40]!r}; expected Human:.")
        if before:
            messages.append({"role": "system", "content": before})
        ends = [*(turn.start() for turn in turns[1:]), len(part)][: len(turns)]
        roles = [turn.group(1) for turn in turns]
        if roles != ["Human", "Assistant"] * (len(roles) // 2):
            raise ConfigError(
                f"Example {number} of the prompt has the turns {', '.join(roles)}; expected Human and Assistant in "
                "turn, the assistant last."
            )
        for turn, end in zip(turns, ends, strict=True):
            messages.append({"role": _ROLES[turn.group(1)], "content": _unwrapped(part[turn.end() : end])})
    if not messages:
        raise ConfigError("The prompt is empty; expected a text, and examples after Human: and Assistant:.")
    return messages


def _unwrapped(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def write_prompt(file: Path, out: Path) -> dict[str, Any]:
    """Write `prompt.json`: the messages, and a version made of the file's name and digest."""
    text = file.read_text(encoding="utf-8")
    version = f"{file.stem} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    record = {"version": version, "messages": parse_prompt(text)}
    (out / "prompt.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"version": version, "num_messages": len(record["messages"])}
